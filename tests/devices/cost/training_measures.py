"""This module measures what this project's own training holds, with its activations packed or
computed again as planned."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from devices.cost.blocks import BatchShape
from devices.training.activations import PackableBlock, RoundingNoise, packed_activations
from devices.training.host import Host
from devices.training.model import block_path, head_size, layer_path
from tests.devices.cost.torch_measures import Measured, StepBytes, step_bytes

CPU = Host(torch.device("cpu"), torch.float32)


def parts_of(measured: Measured) -> list[PackableBlock]:
    """Return the blocks of the model, as training takes them."""
    spec = measured.spec
    top = block_path(spec, 0)
    ends = spec.outline.attention if spec.outline else (2, 3)
    paths = [layer_path(spec, 0, spec.linears[k].name).removeprefix(f"{top}.") for k in ends]
    return [
        PackableBlock(
            block=block,
            value=block.get_submodule(paths[0]),
            output=block.get_submodule(paths[1]),
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_size=head_size(spec),
        )
        for block in measured.blocks
    ]


def measure_step(measured: Measured, bits: Sequence[int], batch: BatchShape) -> StepBytes:
    """Measure a step with each block's activations really packed to its bits, or computed again."""
    noise = RoundingNoise(0, CPU.device)
    packing = packed_activations(parts_of(measured), bits, noise)
    return step_bytes(measured, batch, packing, resident=[noise._pool])
