"""The cost of a head for scores and its squared error agrees with what torch saves, computes and
holds."""

from __future__ import annotations

import pytest

from devices.cost.blocks import BatchShape
from devices.cost.traced import TracedDemand
from devices.fleet.profile import ComputeBits
from devices.models.heads import score_head
from devices.models.spec import Attention
from devices.tracing.block_tracer import BlockTracer
from tests.devices.cost.head_checks import (
    DTYPES,
    SHAPE,
    check_held_and_peak,
    check_saved_and_counted,
    plan_of,
)
from tests.devices.cost.specs import LINEARS, TRACED_LINEARS, attentions
from tests.devices.cost.torch_measures import Measured, config_of, load, step_flops
from tests.devices.cost.training_measures import measure_step
from tests.torture import some

CASES = [(family, attention) for family in LINEARS for attention in attentions(family)]


def measured_in(family: str, bits: ComputeBits, attention: Attention = "eager") -> Measured:
    names = {**TRACED_LINEARS, **LINEARS}[family]
    return load(family, SHAPE, names, attention=attention, dtype=DTYPES[bits], head=score_head())


@pytest.mark.parametrize(
    ("family", "attention", "bits"),
    some(((*case, bits) for case in CASES for bits in (32, 16)), 3),
)
def test_saved_bytes_and_flops_equal_what_torch_saves_and_counts(
    family: str, attention: Attention, bits: ComputeBits
) -> None:
    measured = measured_in(family, bits, attention)
    for depth, is_padded in ((1, True), (2, False)):
        batch = BatchShape(3, 12, is_padded, bits)
        measured.train_top(depth)
        check_saved_and_counted(measured, depth, batch)


@pytest.mark.parametrize(
    ("bits", "activation_bits"), some([(32, 32), (32, 4), (16, 32), (32, 0), (16, 4), (16, 0)], 2)
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
        check_held_and_peak(measured, depth, activation_bits, batch)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_llama_that_is_computed_again_in_16_bits_holds_both_forms_of_its_inputs(
    attention: Attention, depth: int
) -> None:
    check_held_and_peak(
        measured_in("llama", 16, attention), depth, 0, BatchShape(8, 16, is_padded=True, bits=16)
    )


@pytest.mark.parametrize("family", some(("bert", "llama", "gpt2"), 3))
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
