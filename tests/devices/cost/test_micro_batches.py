"""The cost of training a batch in parts agrees with torch and with steps on as many small
batches."""

from __future__ import annotations

from dataclasses import replace

import pytest

from devices.cost.blocks import BatchShape
from devices.cost.closed_form import ClosedFormCost, serial_time
from devices.cost.memory import step_memory
from devices.fleet.profile import StepRates
from devices.vocabulary.plan import TermGrid, TrainingPlan
from tests.devices.cost.specs import make_plan, minilm
from tests.devices.cost.torch_measures import RANK, Shape, StorageTracker, load, step_flops

SHAPE = Shape(num_blocks=2, hidden=96, num_heads=4, num_kv_heads=2, ffn=192)
LENGTH = 40


def in_parts(plan: TrainingPlan, batch_size: int, micro_batch: int | None) -> TrainingPlan:
    return replace(plan, batch_size=batch_size, micro_batch=micro_batch)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_flops_and_the_peak_are_those_of_a_loop_that_accumulates(family: str) -> None:
    """FLOPs agree to the unit, and the peak agrees within 5 %."""
    targets = ("query", "value") if family == "bert" else ("q_proj", "v_proj")
    measured = load(family, SHAPE, targets, attention="eager")
    measured.train_top(2)
    terms = TermGrid.top_blocks(measured.spec.grid_shape(RANK), 2)
    small, times = BatchShape(2, LENGTH, is_padded=True, bits=32), 4
    plan = in_parts(make_plan(measured.spec, terms), 8, 2)
    demand = ClosedFormCost(measured.spec, LENGTH).demand(plan)
    found = [step_flops(measured, small) for _ in range(times)]
    assert demand.forward_flops == sum(one.forward for one in found)
    assert demand.backward_flops == sum(one.backward for one in found)
    resident = [*measured.network.parameters(), *measured.network.buffers()]
    resident += [p.grad for p in measured.network.parameters() if p.grad is not None]
    tracker = StorageTracker(resident)
    with tracker:
        for _ in range(times):
            measured.forward(small).loss.backward()
    memory = demand.memory
    charged = memory.activations + memory.transient + memory.head
    assert charged == pytest.approx(tracker.peak_bytes, rel=0.05)


def test_memory_is_that_of_the_part_and_time_that_of_all_parts_with_one_optimizer_step() -> None:
    spec = minilm()
    whole = make_plan(spec, TermGrid.top_blocks(spec.grid_shape(8), 6))
    costs = ClosedFormCost(spec, 32)
    one, parts = costs.demand(in_parts(whole, 4, None)), costs.demand(in_parts(whole, 16, 4))
    assert (
        parts.memory
        == one.memory
        == step_memory(spec, in_parts(whole, 4, None), BatchShape(4, 32, True, 32))
    )
    assert parts.forward_flops == 4 * one.forward_flops
    assert parts.traffic.optimizer == one.traffic.optimizer
    rates = StepRates(
        flops_per_s=1e9,
        memory_bytes_per_s=1e9,
        cast_bytes_per_s=1e9,
        unpack_bytes_per_s=1e9,
        pack_bytes_per_s=1e9,
        overhead_s=0.5,
    )
    apart, together = serial_time(one, rates), serial_time(parts, rates)
    assert together.forward_s == pytest.approx(4 * apart.forward_s)
    assert together.overhead_s == 4 * apart.overhead_s
    assert together.optimizer_s == apart.optimizer_s
    accumulated_s = 3 * 3 * 4 * spec.trained_parameters(whole.terms) / 1e9
    assert together.backward_s == pytest.approx(4 * apart.backward_s + accumulated_s)
    assert in_parts(whole, 16, 4).workload != in_parts(whole, 16, None).workload


def test_a_part_that_does_not_divide_the_batch_is_refused() -> None:
    spec = minilm()
    whole = make_plan(spec, TermGrid.top_blocks(spec.grid_shape(8), 6))
    for micro_batch in (0, 3, 32):
        with pytest.raises(ValueError, match="divide the batch size of 16"):
            in_parts(whole, 16, micro_batch)
