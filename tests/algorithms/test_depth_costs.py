from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.planning.depth_costs import DepthCosts, Measured, Pace, Work, estimated_pace
from algorithms.strategy import FleetView, LinkRate, make_plan
from devices.cost import closed_form
from devices.models.heads import text_head
from devices.models.spec import ModelSpec
from devices.vocabulary.plan import TermGrid, Timing, TrainingPlan
from tests.algorithms.static_fleet import (
    ClosedFormCost,
    ModelCosts,
    StaticDevice,
    StaticFleet,
    bert,
    device_profile,
)

End = Literal["output", "input"]
LINK = LinkRate(2e5, 1e5)
COSTS = ClosedFormCost(bert(5, 8), block_flops=1e9, activation_bytes=100_000)


def one_step(fleet: FleetView, end: End, work: Work) -> TrainingPlan:
    """Packed blocks are counted from that end of the trained ones."""
    blocks = fleet.model.num_blocks
    packed, rest = (8,) * work.quantized, (32,) * (work.depth - work.quantized)
    bits = (32,) * (blocks - work.depth) + (rest + packed if end == "output" else packed + rest)
    terms = TermGrid.top_blocks(fleet.model.grid_shape(4), work.depth)
    return replace(make_plan(fleet, 0, terms, activation_bits=bits), local_steps=1)


def fleet_of(*budgets: int, costs: ModelCosts = COSTS) -> StaticFleet:
    profile = device_profile("any")
    return StaticFleet([StaticDevice(profile, b, LINK, 10, 3) for b in budgets], costs)


def as_needed(fleet: StaticFleet, end: End = "output") -> DepthCosts:
    return DepthCosts(fleet, partial(one_step, fleet, end), lambda depth: depth)


@given(room=st.integers(-50_000, 700_000), transient_blocks=st.integers(0, 1))
def test_menu_has_the_fewest_quantized_blocks_that_fit(room: int, transient_blocks: int) -> None:
    model_costs = replace(COSTS, transient_blocks=transient_blocks)
    empty = TermGrid.top_blocks(COSTS.model.grid_shape(4), 0)
    probe = fleet_of(0, costs=model_costs)
    budget = probe.cost(make_plan(probe, 0, empty)).memory.total + room
    fleet = fleet_of(budget, costs=model_costs)
    menu = as_needed(fleet).menu(0)
    for depth in range(1, 6):
        fitting = [
            quantized
            for quantized in range(depth + 1)
            if fleet.cost(one_step(fleet, "output", Work(depth, quantized))).memory.total <= budget
        ]
        assert menu.quantized[depth - 1] == (fitting[0] if fitting else -1)
        assert np.isfinite(menu.step_s[depth - 1]) == bool(fitting)
        if fitting:
            cost = fleet.cost(one_step(fleet, "output", Work(depth, fitting[0])))
            assert menu.step_s[depth - 1] == pytest.approx(sum(cost.step))
            assert menu.download_bytes[depth - 1] == cost.download_bytes
            assert menu.upload_bytes[depth - 1] == cost.upload_bytes


LLAMA = ModelSpec.from_config(
    "test-llama",
    {
        "model_type": "llama",
        "num_hidden_layers": 5,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 100,
    },
    ["q_proj", "v_proj", "down_proj"],
    text_head(3),
)


@pytest.mark.parametrize("model", [bert(5, 64), replace(bert(5, 64), attention="sdpa"), LLAMA])
@pytest.mark.parametrize("end", ["output", "input"])
def test_menu_is_minimal_under_the_costs_of_the_simulator(model: ModelSpec, end: End) -> None:
    """This holds at every budget that is the peak of some configuration."""
    costs = closed_form.ClosedFormCost(model, sequence_length=64)
    works = [Work(depth, quantized) for depth in range(1, 6) for quantized in range(depth + 1)]
    probe = fleet_of(0, costs=costs)
    peaks = {work: probe.cost(one_step(probe, end, work)).memory.total for work in works}
    for budget in peaks.values():
        least = [
            min((a for a in range(depth + 1) if peaks[Work(depth, a)] <= budget), default=-1)
            for depth in range(1, 6)
        ]
        fleet = fleet_of(budget, costs=costs)
        assert as_needed(fleet, end).menu(0).quantized.tolist() == least


def test_menu_without_quantization_stops_at_the_depth_that_fits_unpacked() -> None:
    budget = as_needed(fleet_of(0)).cost(0, Work(3, 0)).peak_bytes
    fleet = fleet_of(budget)
    never = DepthCosts(fleet, partial(one_step, fleet, "output"), lambda depth: 0)
    assert never.menu(0).quantized.tolist() == [0, 0, 0, -1, -1]
    assert as_needed(fleet).menu(0).quantized.tolist()[:3] == [0, 0, 0]
    assert as_needed(fleet).menu(0).quantized[3] > 0


def test_devices_of_one_profile_and_budget_are_costed_once() -> None:
    fleet = fleet_of(900_000, 900_000, 900_000)
    costs = as_needed(fleet)
    first = costs.menu(0)
    assert costs.menu(1) is first
    assert costs.menu(2) is first


def rounds(costs: DepthCosts, works: list[Work], *, slower: float, rate: LinkRate) -> Measured:
    """Return what a server measures of a device ``slower`` than predicted, on a steady link."""
    seen = Measured.nothing()
    for work in works:
        cost = costs.cost(0, work)
        timing = Timing(
            cost.download_bytes / rate.down_bytes_per_s,
            3 * slower * cost.step_s,
            cost.upload_bytes / rate.up_bytes_per_s,
        )
        seen = seen.add(work, 3, timing, 0.2)
    return seen


@pytest.mark.parametrize("works", [[Work(2, 0)] * 4, [Work(1, 0), Work(5, 3), Work(2, 1)]])
def test_estimates_approach_what_is_measured_by_a_fifth_a_round(works: list[Work]) -> None:
    """The rule mu <- 0.8 mu + 0.2 x with a steady x gives x + 0.8^n (mu_0 - x), whatever was
    trained."""
    costs = as_needed(fleet_of(2_000_000))
    seen = rounds(costs, works, slower=3.0, rate=LinkRate(4e5, 3e5))
    pace = estimated_pace(costs, 0, Pace(1.0, LINK), seen)
    old = 0.8 ** len(works)
    assert pace.train_ratio == pytest.approx(3.0 - 2.0 * old)
    assert pace.link.down_bytes_per_s == pytest.approx(4e5 + old * (2e5 - 4e5))
    assert pace.link.up_bytes_per_s == pytest.approx(3e5 + old * (1e5 - 3e5))


def test_device_that_was_never_measured_runs_as_predicted() -> None:
    costs = as_needed(fleet_of(2_000_000))
    assert estimated_pace(costs, 0, Pace(1.0, LINK), Measured.nothing()) == Pace(1.0, LINK)


def test_round_without_a_measured_time_is_no_measurement() -> None:
    assert Measured.nothing().add(Work(1, 0), 1, Timing(1.0, 0.0, 1.0), 0.2) == Measured.nothing()
