"""LEGEND gives rising ranks and the depth that a round's time allows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.strategies.legend import LEGEND, rising_ranks
from algorithms.strategy import LinkRate, round_trip_s
from devices.vocabulary.plan import ModuleKey, TrainingPlan
from tests.algorithms.haflq_fleets import device, fleet_of
from tests.algorithms.static_fleet import StaticFleet, random_adapter, trained_update


def plans_of(strategy: LEGEND, fleet: StaticFleet) -> dict[int, TrainingPlan]:
    rng = np.random.default_rng(0)
    state = strategy.init(fleet.model.initial_adapter(strategy.rank, strategy.alpha, rng))
    return {p.device_id: p for p in strategy.plan(state, fleet, fleet.device_ids, rng)}


def test_ranks_are_an_arithmetic_sequence_up_to_the_output() -> None:
    assert rising_ranks(2, 8, num_blocks=4).tolist() == [2, 4, 6, 8]
    assert rising_ranks(1, 4, num_blocks=7).tolist() == [1, 2, 2, 3, 3, 4, 4]  # 1.5 goes up
    assert rising_ranks(5, 5, num_blocks=3).tolist() == [5, 5, 5]
    assert rising_ranks(2, 8, num_blocks=1).tolist() == [8]


@given(st.integers(1, 20), st.integers(0, 20), st.integers(2, 40))
def test_ranks_never_fall_and_keep_their_ends(first: int, more: int, num_blocks: int) -> None:
    ranks = rising_ranks(first, first + more, num_blocks=num_blocks)
    assert (ranks[0], ranks[-1]) == (first, first + more)
    assert (np.diff(ranks) >= 0).all()


def test_every_device_has_the_same_rank_in_a_block_and_trains_the_top_ones(
    fleet: StaticFleet,
) -> None:
    plans = plans_of(LEGEND(), fleet)
    for plan in plans.values():
        num_held = plan.terms.held.sum(axis=2)
        assert num_held.tolist() == [[2, 2], [4, 4], [6, 6], [8, 8]]
        assert plan.terms.held[:, :, 0].all()
        trained = plan.terms.trained.any(axis=(1, 2))
        assert trained.tolist() == [False] * (4 - plan.depth) + [True] * plan.depth
        assert np.array_equal(plan.terms.trained[4 - plan.depth :], plan.terms.held[-plan.depth :])
        assert np.array_equal(plan.terms.uploaded, plan.terms.trained)


def test_a_device_goes_as_deep_as_the_slowest_one_s_time_and_its_memory_allow(
    fleet: StaticFleet,
) -> None:
    """The slow device takes longest by far, so memory alone limits the others: 1, 2, 4 blocks."""
    plans = plans_of(LEGEND(), fleet)
    assert {d: plan.depth for d, plan in plans.items()} == {2: 1, 5: 2, 7: 4}
    for device_id, plan in plans.items():
        assert fleet.cost(plan).memory.total <= fleet.memory_budget_bytes(device_id)
        assert plan.local_steps == fleet.local_steps(device_id)


def test_equal_devices_train_one_block_since_none_may_take_longer_than_the_quickest_depth() -> None:
    plans = plans_of(LEGEND(), fleet_of([device()] * 3))
    assert {plan.depth for plan in plans.values()} == {1}


def without_transfers(*speeds: float) -> StaticFleet:
    """Return devices on links so fast that a round is training alone."""
    return fleet_of([device(link=LinkRate(1e15, 1e15), flops_per_s=s) for s in speeds])


def test_depths_fill_the_time_of_the_slowest() -> None:
    fleet = without_transfers(1e9, 1.2e9, 1.4e9, 1.6e9, 3e9)
    plans = plans_of(LEGEND(), fleet)
    limit_s = round_trip_s(fleet, plans[0])
    of_depth = {plan.depth: plan for plan in plans.values()}
    assert list(of_depth) == [1, 2, 3, 4]
    for device_id, plan in plans.items():
        assert round_trip_s(fleet, plan) <= limit_s
        if plan.depth < 4:
            assert round_trip_s(fleet, of_depth[plan.depth + 1].on(device_id)) > limit_s


def test_with_the_median_s_pace_slower_devices_stay_at_their_quickest_depth() -> None:
    fleet = without_transfers(1e7, 1e9, 3e9)
    slowest, median = plans_of(LEGEND(), fleet), plans_of(LEGEND(pace="median"), fleet)
    assert [plan.depth for plan in slowest.values()] == [1, 4, 4]
    assert [plan.depth for plan in median.values()] == [1, 1, 4]


def test_a_device_without_room_for_one_block_sits_out() -> None:
    assert list(plans_of(LEGEND(), fleet_of([device(), device(100)]))) == [0]
    assert plans_of(LEGEND(), fleet_of([device(100)])) == {}


def test_a_first_rank_above_the_rank_means_the_rank() -> None:
    plans = plans_of(LEGEND(rank=2, first_rank=4), fleet_of([device()]))
    assert (plans[0].terms.held.sum(axis=2) == 2).all()


def test_a_block_is_averaged_over_the_devices_that_trained_it(fleet: StaticFleet) -> None:
    strategy = LEGEND()
    rng = np.random.default_rng(1)
    state = strategy.init(random_adapter(fleet.model, 8, rng))
    plans = strategy.plan(state, fleet, fleet.device_ids, rng)  # depths 1, 2, 4
    updates = [
        trained_update(plan, strategy.broadcast(state, plan), rng, num_examples=n)
        for plan, n in zip(plans, (1, 2, 5), strict=True)
    ]
    merged = strategy.aggregate(state, updates).adapter
    for block, senders in ((0, [2]), (1, [2]), (2, [1, 2]), (3, [0, 1, 2])):
        key = ModuleKey(block, "query")
        num_terms = (2, 4, 6, 8)[block]
        total = sum(updates[k].num_examples for k in senders)
        mean = sum(
            updates[k].num_examples / total * updates[k].adapter.factors[key].a.astype(np.float64)
            for k in senders
        )
        np.testing.assert_allclose(merged.factors[key].a[:num_terms], mean[:num_terms], atol=1e-6)
        start = state.adapter.factors[key].a[num_terms:]
        np.testing.assert_array_equal(merged.factors[key].a[num_terms:], start)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"first_rank": 0}, "first_rank must be at least 1, got 0"),
        ({"pace": "mean"}, "pace must be one of slowest, median, got 'mean'"),
    ],
)
def test_a_wrong_option_is_named_with_what_must_hold(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LEGEND(**given)
