"""HAFLQ fits block formats and numbers of terms to a device's memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from algorithms.strategies.haflq import HAFLQ
from devices.cost.model import Cost
from devices.fleet.profile import DeviceProfile
from devices.models.spec import ModelSpec
from devices.vocabulary.plan import TrainingPlan
from devices.vocabulary.trainer import SalienceMetric
from tests.algorithms.haflq_fleets import (
    RANK,
    costs_of,
    device,
    fleet_of,
    peak_bytes,
    plans_of,
    state_of,
)
from tests.algorithms.static_fleet import StaticFleet
from traces.arrays import FloatArray


def test_blocks_stay_fp16_where_memory_allows() -> None:
    plan = plans_of(HAFLQ(), fleet_of([device()]))[0]
    assert plan.weight_formats == ("fp16",) * 4


def test_least_salient_blocks_are_packed_first_and_no_more_than_needed() -> None:
    probe = fleet_of([device()])
    formats = ("fp16", "int8", "fp16", "int8")
    exact = peak_bytes(probe, formats, RANK)
    packed = plans_of(HAFLQ(), fleet_of([device(exact)]))[0]
    assert packed.weight_formats == formats
    tighter = plans_of(HAFLQ(), fleet_of([device(exact - 1)]))[0]
    assert tighter.weight_formats == ("fp16", "int8", "int8", "int8")


def test_nf4_takes_the_place_of_int4_where_asked() -> None:
    probe = fleet_of([device()])
    exact = peak_bytes(probe, ("nf4",) * 4, RANK)
    plan = plans_of(HAFLQ(four_bit="nf4"), fleet_of([device(exact)]))[0]
    assert plan.weight_formats == ("nf4",) * 4


def test_terms_are_dropped_one_by_one_once_every_block_is_at_4_bits() -> None:
    probe = fleet_of([device()])
    fleet = fleet_of([device(peak_bytes(probe, ("int4",) * 4, 5) + 1)])
    plan = plans_of(HAFLQ(), fleet)[0]
    assert plan.weight_formats == ("int4",) * 4
    assert (plan.terms.trained.sum(axis=2) == 5).all()


def test_a_device_that_cannot_hold_one_term_sits_out() -> None:
    probe = fleet_of([device()])
    exact = peak_bytes(probe, ("int4",) * 4, 1)
    assert 0 in plans_of(HAFLQ(), fleet_of([device(exact)]))
    assert plans_of(HAFLQ(), fleet_of([device(exact - 1)])) == {}


def test_shared_formats_are_those_of_the_neediest_device() -> None:
    probe = fleet_of([device()])
    needy = peak_bytes(probe, ("int8",) * 4, RANK)
    plans = plans_of(HAFLQ(), fleet_of([device(), device(needy)]))
    assert [plan.weight_formats for plan in plans.values()] == [("int8",) * 4] * 2


def test_shared_formats_do_not_depend_on_the_cohort() -> None:
    probe = fleet_of([device()])
    fleet = fleet_of([device(), device(peak_bytes(probe, ("int8",) * 4, RANK))])
    strategy = HAFLQ()
    (plan,) = strategy.plan(state_of(strategy, fleet), fleet, [0], np.random.default_rng(0))
    assert plan.weight_formats == ("int8",) * 4


def test_a_device_that_fits_in_no_way_does_not_drag_the_shared_formats_down() -> None:
    plans = plans_of(HAFLQ(), fleet_of([device(), device(100)]))
    assert list(plans) == [0]
    assert plans[0].weight_formats == ("fp16",) * 4


def test_per_device_formats_follow_each_device_s_memory() -> None:
    probe = fleet_of([device()])
    needy = peak_bytes(probe, ("int8",) * 4, RANK)
    strategy = HAFLQ(allocation_scope="per_device")
    plans = plans_of(strategy, fleet_of([device(), device(needy)]))
    assert [plan.weight_formats for plan in plans.values()] == [("fp16",) * 4, ("int8",) * 4]


def test_threshold_packs_the_same_share_whatever_the_memory() -> None:
    probe = fleet_of([device()])
    formats = ("int8", "int4", "int8", "int4")
    exact = peak_bytes(probe, formats, 3)
    strategy = HAFLQ(block_rule="threshold", threshold_share=0.5)
    plans = plans_of(strategy, fleet_of([device(), device(exact), device(100)]))
    assert {d: plan.weight_formats for d, plan in plans.items()} == {0: formats, 1: formats}
    assert (plans[1].terms.trained.sum(axis=2) == 3).all()


class MetricFleet(StaticFleet):
    """In this fleet block 0 is the least salient by Taylor, block 3 by any other metric."""

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        return np.array([1.0, 2.0, 2.0, 3.0] if metric == "taylor" else [3.0, 2.0, 2.0, 1.0])


@pytest.mark.parametrize(("metric", "block"), [("taylor", 0), ("outerr", 3)])
def test_blocks_lose_bits_by_the_metric_that_was_asked_for(metric: Any, block: int) -> None:
    exact = peak_bytes(fleet_of([device()]), ("fp16", "fp16", "fp16", "int8"), RANK)
    fleet = MetricFleet([device(exact)], costs_of(num_blocks=4), batch_size=1)
    plan = plans_of(HAFLQ(salience=metric), fleet)[0]
    assert [k for k, name in enumerate(plan.weight_formats) if name == "int8"] == [block]


@dataclass(frozen=True)
class UnevenCost:
    """By this cost the last term of each module takes a megabyte more than others to train."""

    model: ModelSpec

    def cost(self, plan: TrainingPlan, profile: DeviceProfile) -> Cost:
        cost = costs_of(self.model.num_blocks).cost(plan, profile)
        extra = 10**6 * int(plan.terms.trained[..., -1].sum())
        return replace(cost, memory=replace(cost.memory, transient=cost.memory.transient + extra))


def test_a_device_sits_out_where_the_terms_chosen_take_more_than_any_others_would() -> None:
    model = costs_of(num_blocks=4).model
    fleet = StaticFleet([device(500_000)] * 40, UnevenCost(model), batch_size=1)
    strategy = HAFLQ(term_budgets=(1,))
    plans = plans_of(strategy, fleet)
    assert 0 < len(plans) < 40  # (7/8)^8 = 34 % choose the last term in no module
    assert all(fleet.cost(plan).memory.total <= 500_000 for plan in plans.values())


def test_a_device_that_packed_weights_leave_too_small_takes_part_with_checkpointing() -> None:
    probe = fleet_of([device()])
    (plan,) = plans_of(HAFLQ(activation_bits=0), probe).values()
    budget = probe.cost(plan).memory.total
    fleet = fleet_of([device(budget)])
    assert plans_of(HAFLQ(), fleet) == {}
    (made,) = plans_of(HAFLQ(activation_bits=0), fleet).values()
    assert set(made.activation_bits) == {0}
    assert fleet.cost(made).memory.total <= budget
