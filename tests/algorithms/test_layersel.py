"""LayerSel takes norms from updates and budgets from memory, and trains any subset of blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from algorithms.strategies.layersel import LayerNorms, LayerSel, optimistic
from algorithms.strategy import ServerState
from devices.cost.model import Cost
from devices.fleet.profile import DeviceProfile
from devices.models.spec import ModelSpec
from devices.vocabulary.plan import Factors, ModuleKey, TrainingPlan
from tests.algorithms.haflq_fleets import costs_of, device, fleet_of
from tests.algorithms.static_fleet import StaticFleet, random_adapter, trained_update


def state_with(
    strategy: LayerSel, fleet: StaticFleet, norms: LayerNorms
) -> ServerState[LayerNorms]:
    adapter = random_adapter(fleet.model, strategy.rank, np.random.default_rng(0))
    return replace(strategy.init(adapter), memory=norms)


def blocks_of(strategy: LayerSel, fleet: StaticFleet, norms: LayerNorms) -> dict[int, list[int]]:
    state = state_with(strategy, fleet, norms)
    plans = strategy.plan(state, fleet, fleet.device_ids, np.random.default_rng(0))
    for plan in plans:
        assert plan.terms.held.all()
        assert np.array_equal(plan.terms.uploaded, plan.terms.trained)
        assert fleet.cost(plan).memory.total <= fleet.memory_budget_bytes(plan.device_id)
    return {p.device_id: np.flatnonzero(p.terms.trained.all(axis=(1, 2))).tolist() for p in plans}


def test_each_device_trains_the_blocks_of_its_own_largest_norms() -> None:
    fleet = fleet_of([device()] * 2)
    norms = {0: np.array([9.0, 1, 8, 2]), 1: np.array([1.0, 7, 2, 9])}
    assert blocks_of(LayerSel(max_blocks=2), fleet, norms) == {0: [0, 2], 1: [1, 3]}


def test_memory_alone_lets_a_roomy_device_train_everything() -> None:
    assert blocks_of(LayerSel(), fleet_of([device()]), {}) == {0: [0, 1, 2, 3]}


def test_a_block_whose_depth_does_not_fit_is_out_of_reach_however_large_its_norm(
    fleet: StaticFleet,
) -> None:
    """The devices have room for 1, 2 and 4 crossed blocks."""
    norms = {d: np.array([9.0, 1, 8, 2]) for d in (2, 5, 7)}
    assert blocks_of(LayerSel(max_blocks=1), fleet, norms) == {2: [3], 5: [2], 7: [0]}


def test_before_the_first_update_blocks_near_the_output_come_first() -> None:
    assert blocks_of(LayerSel(max_blocks=2), fleet_of([device()]), {}) == {0: [2, 3]}


def test_a_cohort_that_moved_nothing_trains_the_block_at_the_output() -> None:
    norms = {0: np.zeros(4), 9: np.ones(4)}
    assert blocks_of(LayerSel(), fleet_of([device()]), norms) == {0: [3]}


def test_a_block_not_seen_yet_is_tried_before_one_known_to_be_small() -> None:
    norms = {0: np.array([np.nan, np.nan, 1.0, 5.0])}
    assert blocks_of(LayerSel(max_blocks=2), fleet_of([device()]), norms) == {0: [1, 3]}


def test_what_a_device_has_not_seen_counts_as_the_most_seen_of_that_block() -> None:
    nan = np.nan
    known = {0: np.array([nan, 2.0, 6.0]), 1: np.array([nan, 3.0, nan])}
    norms = optimistic(known, [0, 1, 9], num_blocks=3)
    assert norms.tolist() == [[6, 2, 6], [6, 3, 6], [6, 3, 6]]
    assert optimistic({}, [4], num_blocks=3).tolist() == [[1, 1, 1]]
    zeros = {0: np.zeros(3)}
    assert optimistic(zeros, [0], num_blocks=3).tolist() == [[1, 1, 1]]


def test_norms_are_squared_changes_of_the_last_update_of_each_block() -> None:
    fleet = fleet_of([device()])
    strategy = LayerSel(max_blocks=2)
    state = state_with(strategy, fleet, {0: np.array([9.0, 1, 8, 2]), 5: np.ones(4)})
    (plan,) = strategy.plan(state, fleet, [0], np.random.default_rng(0))
    broadcast = strategy.broadcast(state, plan)
    update = trained_update(plan, broadcast, np.random.default_rng(0))
    moved = dict(broadcast.adapter.factors)
    for module in broadcast.adapter.modules:  # of 8 terms: 8 x (8 + 8), and 8 x (8 + 32)
        for block in (0, 1):
            a, b = moved[ModuleKey(block, module)]
            moved[ModuleKey(block, module)] = Factors(a + np.float32(3), b + np.float32(3))
    update = replace(update, adapter=replace(broadcast.adapter, factors=moved))
    after = strategy.aggregate(state, [update]).memory
    # Block 1 was not in the plan, so what stands there is no update.
    assert after[0] == pytest.approx([9 * 8 * (16 + 40), 1, 0, 2], rel=1e-5)
    assert after[5].tolist() == [1, 1, 1, 1]


def test_consistency_draws_devices_to_the_same_blocks() -> None:
    fleet = fleet_of([device()] * 3)
    norms = {0: np.array([5.0, 0, 0, 1]), 1: np.array([0, 3.0, 0, 1]), 2: np.array([0, 3.0, 0, 1])}
    assert blocks_of(LayerSel(max_blocks=1), fleet, norms) == {0: [0], 1: [1], 2: [1]}
    alike = blocks_of(LayerSel(max_blocks=1, consistency=100.0), fleet, norms)
    assert alike == {0: [1], 1: [1], 2: [1]}


@pytest.mark.parametrize("unit", [2.0**-20, 1.0, 2.0**20])
def test_consistency_is_in_units_of_the_mean_norm(unit: float) -> None:
    """Block 0 is worth 5 to device 0 and parts it from the other two in blocks 0 and 1: 4 pairs.
    The mean norm is 14 / 12, so it is chosen while 5 > 4 lambda 14 / 12: up to 1.0714."""
    fleet = fleet_of([device()] * 3)
    norms = {0: np.array([5.0, 0, 0, 1]), 1: np.array([0, 3.0, 0, 1]), 2: np.array([0, 3.0, 0, 1])}
    scaled = {d: unit * values for d, values in norms.items()}
    apart = blocks_of(LayerSel(max_blocks=1, consistency=1.07), fleet, scaled)
    assert apart == {0: [0], 1: [1], 2: [1]}
    alike = blocks_of(LayerSel(max_blocks=1, consistency=1.08), fleet, scaled)
    assert alike == {0: [1], 1: [1], 2: [1]}


def test_a_device_without_room_for_one_block_sits_out() -> None:
    assert list(blocks_of(LayerSel(), fleet_of([device(), device(100)]), {})) == [0]
    assert blocks_of(LayerSel(), fleet_of([device(100)]), {}) == {}


@dataclass(frozen=True)
class UnevenCost:
    """By this cost the lowest and the top block together take a megabyte more than any others."""

    model: ModelSpec

    def cost(self, plan: TrainingPlan, profile: DeviceProfile) -> Cost:
        cost = costs_of(self.model.num_blocks).cost(plan, profile)
        trained = plan.terms.trained.any(axis=(1, 2))
        is_odd = trained[0] and trained[-1] and not trained[1]
        extra = 10**6 * int(is_odd)
        return replace(cost, memory=replace(cost.memory, transient=cost.memory.transient + extra))


def test_lower_blocks_are_given_up_where_those_chosen_take_more_than_others_would() -> None:
    fleet = StaticFleet([device(500_000)], UnevenCost(costs_of(4).model), batch_size=1)
    norms = {0: np.array([9.0, 1, 2, 8])}
    assert blocks_of(LayerSel(max_blocks=2), fleet, norms) == {0: [3]}


def test_a_block_is_averaged_over_the_devices_that_trained_it() -> None:
    fleet = fleet_of([device()] * 2)
    strategy = LayerSel(max_blocks=2)
    norms = {0: np.array([9.0, 1, 8, 2]), 1: np.array([1.0, 2, 7, 9])}
    state = state_with(strategy, fleet, norms)
    rng = np.random.default_rng(1)
    # Device 0 trains the blocks 0 and 2, device 1 the blocks 2 and 3.
    first, second = (
        trained_update(plan, strategy.broadcast(state, plan), rng, num_examples=n)
        for plan, n in zip(strategy.plan(state, fleet, [0, 1], rng), (1, 3), strict=True)
    )
    merged = strategy.aggregate(state, [first, second]).adapter.factors
    old = state.adapter.factors
    for module in state.adapter.modules:
        keys = [ModuleKey(block, module) for block in range(4)]
        np.testing.assert_array_equal(merged[keys[0]].b, first.adapter.factors[keys[0]].b)
        np.testing.assert_array_equal(merged[keys[1]].b, old[keys[1]].b)
        mean = (first.adapter.factors[keys[2]].b + 3 * second.adapter.factors[keys[2]].b) / 4
        np.testing.assert_allclose(merged[keys[2]].b, mean, atol=1e-6)
        np.testing.assert_array_equal(merged[keys[3]].b, second.adapter.factors[keys[3]].b)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"max_blocks": 0}, "max_blocks must be memory or at least 1, got 0"),
        ({"max_blocks": "all"}, "max_blocks must be memory or at least 1, got 'all'"),
        ({"consistency": -1.0}, "consistency must be at least 0 and finite, got -1.0"),
    ],
)
def test_a_wrong_option_is_named_with_what_must_hold(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LayerSel(**given)
