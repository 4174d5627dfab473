"""What a head for scores and its squared error cost, against what torch saves, computes, holds."""

from __future__ import annotations

import pytest
import torch

from devices.cost.blocks import BatchShape, block_terms
from devices.cost.closed_form import closed_form_demand
from devices.cost.saved import block_tensors, head_tensors, raw_bytes, rotary_tensors
from devices.cost.traced import TracedDemand
from devices.fleet.profile import ComputeBits
from devices.models.heads import score_head
from devices.models.spec import Attention, ModelSpec
from devices.tracing.block_tracer import BlockTracer
from devices.vocabulary.plan import TermGrid, TrainingPlan
from tests.devices.cost.specs import LINEARS, TRACED_LINEARS, attentions, make_plan
from tests.devices.cost.torch_measures import (
    RANK,
    Measured,
    Shape,
    config_of,
    load,
    saved_bytes,
    step_flops,
)
from tests.devices.cost.training_measures import measure_step

SHAPE = Shape(num_blocks=2, hidden=48, num_heads=4, num_kv_heads=2, ffn=96)
DTYPES: dict[int, torch.dtype] = {32: torch.float32, 16: torch.bfloat16}
CASES = [(family, attention) for family in LINEARS for attention in attentions(family)]


def plan_of(spec: ModelSpec, depth: int, bits: int, batch: BatchShape) -> TrainingPlan:
    terms = TermGrid.top_blocks(spec.grid_shape(RANK), depth)
    plan = make_plan(spec, terms, activation_bits=bits)
    return TrainingPlan(**{**vars(plan), "batch_size": batch.size})


def measured_in(family: str, bits: ComputeBits, attention: Attention = "eager") -> Measured:
    names = {**TRACED_LINEARS, **LINEARS}[family]
    return load(family, SHAPE, names, attention=attention, dtype=DTYPES[bits], head=score_head())


@pytest.mark.parametrize("bits", [32, 16])
@pytest.mark.parametrize(("family", "attention"), CASES)
def test_saved_bytes_and_flops_equal_what_torch_saves_and_counts(
    family: str, attention: Attention, bits: ComputeBits
) -> None:
    measured = measured_in(family, bits, attention)
    spec = measured.spec
    for depth, is_padded in ((1, True), (2, False)):
        batch = BatchShape(3, 12, is_padded, bits)
        measured.train_top(depth)
        blocks = block_terms(spec, TermGrid.top_blocks(spec.grid_shape(RANK), depth))
        found = saved_bytes(measured, batch)
        assert found["after"] == raw_bytes(head_tensors(spec, blocks, batch))
        halves = (half for block in blocks for half in block_tensors(spec, block, batch))
        of_blocks = sum(map(raw_bytes, halves)) + raw_bytes(rotary_tensors(spec, blocks, batch))
        assert sum(found.values()) - found["after"] == of_blocks
        demand = closed_form_demand(spec, plan_of(spec, depth, 32, batch), batch)
        assert step_flops(measured, batch) == (demand.forward_flops, demand.backward_flops)


@pytest.mark.parametrize(
    ("bits", "activation_bits"), [(32, 32), (32, 4), (16, 32), (32, 0), (16, 4)]
)
@pytest.mark.parametrize(
    ("family", "attention"), [*CASES[:3], ("llama", "eager"), ("llama", "sdpa")]
)
def test_held_bytes_are_exact_and_the_peak_is_within_5_percent(
    family: str, attention: Attention, bits: ComputeBits, activation_bits: int
) -> None:
    measured = measured_in(family, bits, attention)
    batch = BatchShape(4, 40, is_padded=True, bits=bits)
    for depth in (1, 2):
        measured.train_top(depth)
        plan = plan_of(measured.spec, depth, activation_bits, batch)
        memory = closed_form_demand(measured.spec, plan, batch).memory
        found = measure_step(measured, plan.activation_bits, batch)
        assert found.after_forward == memory.activations + memory.head
        charged = memory.activations + memory.transient + memory.head
        assert charged == pytest.approx(found.peak, rel=0.05)


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_a_trace_costs_what_torch_holds_and_computes(family: str) -> None:
    measured = measured_in(family, 32)
    batch = BatchShape(4, 40, is_padded=True, bits=32)
    measured.train_top(2)
    spec = measured.spec
    plan = plan_of(spec, 2, 32, batch)
    demand = TracedDemand(BlockTracer(spec, config_of(family, SHAPE)))(spec, plan, batch)
    found, memory = measure_step(measured, plan.activation_bits, batch), demand.memory
    assert memory.activations + memory.head == found.after_forward
    charged = memory.activations + memory.transient + memory.head
    assert charged == pytest.approx(found.peak, rel=0.05)
    assert step_flops(measured, batch) == (demand.forward_flops, demand.backward_flops)
