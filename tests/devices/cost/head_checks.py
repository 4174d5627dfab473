"""What the tests of a head's costs have in common: its plans, and the comparison with torch."""

from __future__ import annotations

import pytest
import torch

from devices.cost.blocks import BatchShape, block_terms
from devices.cost.closed_form import closed_form_demand
from devices.cost.saved import block_tensors, head_tensors, raw_bytes, rotary_tensors
from devices.models.spec import ModelSpec
from devices.vocabulary.plan import TermGrid, TrainingPlan
from tests.devices.cost.specs import make_plan
from tests.devices.cost.torch_measures import RANK, Measured, Shape, saved_bytes, step_flops
from tests.devices.cost.training_measures import measure_step

SHAPE = Shape(num_blocks=2, hidden=48, num_heads=4, num_kv_heads=2, ffn=96)
DTYPES: dict[int, torch.dtype] = {32: torch.float32, 16: torch.bfloat16}


def plan_of(spec: ModelSpec, depth: int, bits: int, batch: BatchShape) -> TrainingPlan:
    """Return the plan that trains the top blocks on such a batch, with its activations at these
    bits."""
    terms = TermGrid.top_blocks(spec.grid_shape(RANK), depth)
    plan = make_plan(spec, terms, activation_bits=bits)
    return TrainingPlan(**{**vars(plan), "batch_size": batch.size})


def check_saved_and_counted(measured: Measured, depth: int, batch: BatchShape) -> None:
    """Check that the closed forms have the bytes that torch saves, and its FLOPs."""
    spec = measured.spec
    blocks = block_terms(spec, TermGrid.top_blocks(spec.grid_shape(RANK), depth))
    found = saved_bytes(measured, batch)
    assert found["after"] == raw_bytes(head_tensors(spec, blocks, batch))
    halves = (half for block in blocks for half in block_tensors(spec, block, batch))
    of_blocks = sum(map(raw_bytes, halves)) + raw_bytes(rotary_tensors(spec, blocks, batch))
    assert sum(found.values()) - found["after"] == of_blocks
    demand = closed_form_demand(spec, plan_of(spec, depth, 32, batch), batch)
    assert step_flops(measured, batch) == (demand.forward_flops, demand.backward_flops)


def check_held_and_peak(measured: Measured, depth: int, bits: int, batch: BatchShape) -> None:
    """Check the bytes held between the passes exactly, and the peak within 5 percent."""
    measured.train_top(depth)
    plan = plan_of(measured.spec, depth, bits, batch)
    memory = closed_form_demand(measured.spec, plan, batch).memory
    found = measure_step(measured, plan.activation_bits, batch)
    assert found.after_forward == memory.activations + memory.head
    charged = memory.activations + memory.transient + memory.head
    assert charged == pytest.approx(found.peak, rel=0.05)
