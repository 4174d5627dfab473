"""What the cost model charges, against what this project's own training holds and computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from devices.cost.blocks import Batch, block_terms
from devices.cost.closed_form import ClosedFormCost
from devices.cost.flops import backward_flops, forward_flops
from devices.cost.memory import matrix_bytes, step_memory
from devices.cost.model import MemoryBreakdown
from devices.cost.saved import (
    SavedTensor,
    block_tensors,
    head_tensors,
    raw_bytes,
    rotary_tensors,
)
from devices.model_catalog import resolve
from devices.model_spec import Attention, LinearSpec, ModelSpec
from devices.plan import WEIGHT_FORMATS, BoolArray, FactorUse, TermGrid, TrainingPlan, WeightFormat
from devices.training.activations import (
    PackableBlock,
    RoundingNoise,
    pack_activation,
    packed_activations,
)
from devices.training.adapters import load_adapter
from devices.training.host import Host
from devices.training.model import load_model
from devices.training.weights import pack
from tests.devices.cost.specs import BERT_LINEARS, LLAMA_LINEARS, make_plan
from tests.devices.cost.torch_measures import (
    RANK,
    Measured,
    Shape,
    StepBytes,
    load,
    saved_bytes,
    step_bytes,
    step_flops,
)
from tests.devices.training.tiny_task import TARGETS, save_model

SMALL = Shape(num_blocks=3, hidden=64, num_heads=4, num_kv_heads=2, ffn=256)
CPU = Host(torch.device("cpu"), torch.float32)


def measure_step(measured: Measured, bits: Sequence[int], batch: Batch) -> StepBytes:
    """With each block's activations really packed to its bits."""
    spec, noise = measured.spec, RoundingNoise(0, CPU.device)
    paths = ("attention.self.value", "attention.output.dense")
    if spec.family == "llama":
        paths = ("self_attn.v_proj", "self_attn.o_proj")
    parts = [
        PackableBlock(
            block=block,
            value=block.get_submodule(paths[0]),
            output=block.get_submodule(paths[1]),
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_size=spec.hidden // spec.num_heads,
        )
        for block in measured.blocks
    ]
    drawn = [value for value in vars(noise).values() if isinstance(value, torch.Tensor)]
    return step_bytes(measured, batch, packed_activations(parts, bits, noise), resident=drawn)


def plan_of(spec: ModelSpec, depth: int, bits: Sequence[int]) -> TrainingPlan:
    terms = TermGrid.top_blocks(spec.grid_shape(RANK), depth)
    return replace(make_plan(spec, terms), activation_bits=tuple(bits))


def peak_ratio(memory: MemoryBreakdown, found: StepBytes) -> float:
    return (memory.activations + memory.transient + memory.head) / found.peak


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_a_weight_takes_the_bytes_that_it_is_packed_in(weight_format: WeightFormat) -> None:
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(0))
    layer = LinearSpec("query", in_features=64, out_features=48, bias=True)
    assert matrix_bytes(layer, weight_format) == pack(weight, weight_format).stored_bytes


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("elements", [1024, 1025, 4095, 64 * 77])
def test_an_activation_takes_the_bytes_that_it_is_packed_in(elements: int, bits: int) -> None:
    tensor = torch.randn(elements, generator=torch.Generator().manual_seed(0))
    packed = pack_activation(tensor, bits, RoundingNoise(0, CPU.device))
    assert packed is not None
    assert SavedTensor(elements, 32).held_bytes(bits) == packed.stored_bytes


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("weight_format", ["fp32", "int4"])
@pytest.mark.parametrize("use", ["both", "b_only"])
def test_frozen_and_truncated_terms_and_factors_cost_what_training_saves_and_computes(
    attention: Attention, weight_format: WeightFormat, use: FactorUse
) -> None:
    source = resolve("tiny")
    spec = ModelSpec.from_config("tiny", source.config, ("query", "value", "output.dense"), 5)
    spec = replace(spec, attention=attention)
    model = load_model(source, spec, CPU)
    model.weights.use((weight_format,) * spec.num_blocks)
    rng = np.random.default_rng(7)
    adapter = spec.initial_adapter(RANK, 1.0, rng)
    batch = Batch(2, 12, is_padded=False, bits=32)
    for share_trained in (0.9, 0.5, 0.2, 0.2, 0.1, 0.1):
        held = rng.random(spec.grid_shape(RANK)) < 0.7
        trained = held & (rng.random(held.shape) < share_trained)
        grid = TermGrid(held, trained, np.zeros(held.shape, dtype=np.uint8), use)
        load_adapter(model, adapter, grid)
        measured = Measured(spec, model.network)
        blocks = block_terms(spec, grid)
        found = saved_bytes(measured, batch)
        assert [found.get(block, 0) for block in range(spec.num_blocks)] == [
            sum(map(raw_bytes, block_tensors(spec, block, batch))) for block in blocks
        ]
        assert step_flops(measured, batch) == (
            forward_flops(spec, blocks, batch),
            backward_flops(spec, blocks, batch),
        )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
def test_a_plan_with_absent_blocks_costs_what_training_without_them_holds_saves_and_computes(
    family: str, attention: Attention, tmp_path: Path
) -> None:
    source = resolve(str(save_model(tmp_path, family, num_blocks=4)))
    spec = ModelSpec.from_config(family, source.config, TARGETS[family], 4)
    spec = replace(spec, attention=attention)
    model = load_model(source, spec, CPU)
    rng = np.random.default_rng(3)
    adapter = spec.initial_adapter(RANK, 1.0, rng)
    batch = Batch(2, 12, is_padded=False, bits=32)
    for num_present in (1, 2, 3, 3):
        present = np.isin(np.arange(4), rng.choice(4, num_present, replace=False))
        plan = plan_without(spec, present, share_trained=0.6, rng=rng)
        load_adapter(model, adapter, plan.terms)
        measured = Measured(spec, model.network)
        with model.only(present):
            found, flops = saved_bytes(measured, batch), step_flops(measured, batch)
            num_frozen = sum(p.numel() for n, p in frozen_parameters(model.network))
        demand = ClosedFormCost(spec, batch.length).demand(plan)
        small, compact = replace(spec, num_blocks=num_present), plan.compact()
        blocks = block_terms(small, compact.terms)
        assert sum(found.values()) == sum(
            raw_bytes(tensors)
            for tensors in (
                *(half for block in blocks for half in block_tensors(small, block, batch)),
                rotary_tensors(small, blocks, batch),
                head_tensors(small, blocks, batch),
            )
        )
        assert flops == (demand.forward_flops, demand.backward_flops)
        assert demand.memory.weights == 4 * num_frozen


def plan_without(
    spec: ModelSpec, present: BoolArray, *, share_trained: float, rng: np.random.Generator
) -> TrainingPlan:
    """Terms held and trained at random in the blocks that are present, one at least."""
    held = np.broadcast_to(present[:, None, None], spec.grid_shape(RANK)).copy()
    trained = held & (rng.random(held.shape) < share_trained)
    trained[np.flatnonzero(present)[-1], 0, 0] = True
    grid = TermGrid(held, trained, np.zeros(held.shape, dtype=np.uint8))
    formats = tuple("fp32" if is_present else "absent" for is_present in present)
    return replace(make_plan(spec, grid), weight_formats=formats, batch_size=2)


def frozen_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Neither LoRA's nor the head's."""
    for name, parameter in network.named_parameters():
        if not any(part in name for part in ("lora_", "modules_to_save", "original_module")):
            yield name, parameter


CASES = [
    (family, targets, attention, bits)
    for family, targets in (
        ("bert", ("query", "value")),
        ("bert", BERT_LINEARS),
        ("llama", ("q_proj", "v_proj")),
        ("llama", LLAMA_LINEARS),
    )
    for attention in ("eager", "sdpa")
    for bits in (32, 8, 4)
]


@pytest.mark.parametrize(
    ("family", "targets", "attention", "bits"),
    CASES,
    ids=[f"{family}-{len(targets)}-{how}-{bits}" for family, targets, how, bits in CASES],
)
def test_packed_bytes_and_the_peak_follow_the_closed_form(
    family: str, targets: tuple[str, ...], attention: Attention, bits: int
) -> None:
    measured = load(family, SMALL, targets, attention=attention)
    spec = measured.spec
    batch = Batch(4, 40, is_padded=True, bits=32)
    for depth in (1, spec.num_blocks):
        measured.train_top(depth)
        plan = plan_of(spec, depth, (bits,) * spec.num_blocks)
        memory = step_memory(spec, plan, batch)
        found = measure_step(measured, plan.activation_bits, batch)
        assert found.after_forward == memory.activations + memory.head
        assert 0.95 < peak_ratio(memory, found) < 1.08


@pytest.mark.parametrize("bits", [(8, 32, 32), (32, 32, 8), (8, 8, 32), (32, 4, 8)])
def test_the_peak_follows_which_blocks_are_packed(bits: tuple[int, ...]) -> None:
    measured = load("bert", SMALL, ("query", "value"), attention="eager")
    batch = Batch(4, 40, is_padded=True, bits=32)
    measured.train_top(3)
    memory = step_memory(measured.spec, plan_of(measured.spec, 3, bits), batch)
    found = measure_step(measured, bits, batch)
    assert found.after_forward == memory.activations + memory.head
    assert 0.95 < peak_ratio(memory, found) < 1.08
