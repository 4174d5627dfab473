"""Fed-HeLLo draws blocks by Fisher information, which it keeps until it is measured again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.planning.layer_choice import plan_of_blocks
from algorithms.strategies.fed_hello import Allocation, FedHeLLo, draw_weights, three_groups
from algorithms.strategy import LinkRate, ServerState
from devices.cost.closed_form import ClosedFormCost
from devices.vocabulary.plan import ClientUpdate, DeviceId, TrainingPlan
from tests.algorithms.haflq_fleets import device, fleet_of
from tests.algorithms.static_fleet import (
    StaticDevice,
    StaticFleet,
    bert,
    device_profile,
    random_adapter,
    trained_update,
)
from tests.torture import scaled
from traces.arrays import FloatArray

NUM_BLOCKS = 12
SCORES = np.array([1.0, 1.1, 5.0, 5.1, 5.2, 9.0, 1.2, 5.3, 9.1, 1.3, 1.4, 9.2])
GROUPS = [0, 0, 1, 1, 1, 2, 0, 1, 2, 0, 0, 2]


def fleet(budgets: Sequence[int] = (10**9,) * 4) -> StaticFleet:
    """Return a fleet with a device for each memory budget and a model of twelve blocks."""
    devices = [
        StaticDevice(device_profile("any"), budget, LinkRate(1e6, 1e6), num_examples=k + 1)
        for k, budget in enumerate(budgets)
    ]
    return StaticFleet(devices, ClosedFormCost(bert(NUM_BLOCKS, 8), 16), salience=SCORES)


def start(strategy: FedHeLLo) -> ServerState[Allocation]:
    rng = np.random.default_rng(0)
    return strategy.init(random_adapter(bert(NUM_BLOCKS, 8), strategy.rank, rng))


def plans_of(
    strategy: FedHeLLo, state: ServerState[Allocation], seed: int, cohort: Sequence[DeviceId]
) -> list[TrainingPlan]:
    return list(strategy.plan(state, fleet(), cohort, np.random.default_rng(seed)))


def blocks_of(plan: TrainingPlan) -> tuple[int, ...]:
    return tuple(np.flatnonzero(plan.terms.trained.any(axis=(1, 2))).tolist())


def updates_of(
    strategy: FedHeLLo, state: ServerState[Allocation], plans: Sequence[TrainingPlan]
) -> list[ClientUpdate]:
    rng = np.random.default_rng(state.version)
    return [
        trained_update(p, strategy.broadcast(state, p), rng, num_examples=p.device_id + 1)
        for p in plans
    ]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6))
def test_groups_have_the_least_squares_of_all_divisions_and_rise_with_the_score(
    numbers: list[int],
) -> None:
    scores = np.array(numbers, dtype=np.float64)
    groups = three_groups(scores)
    num_groups = min(3, len(set(numbers)))
    assert set(groups.tolist()) == set(range(num_groups))
    order = np.argsort(scores, kind="stable")
    assert (np.diff(groups[order]) >= 0).all()
    best = min(
        spread(scores, np.array(labels))
        for labels in product(range(3), repeat=len(numbers))
        if len(set(labels)) <= num_groups
    )
    assert spread(scores, groups) == pytest.approx(best, abs=1e-9)


def spread(scores: FloatArray, labels: FloatArray) -> float:
    parts = [scores[labels == label] for label in np.unique(labels)]
    return float(sum(np.square(part - part.mean()).sum() for part in parts))


def test_the_highest_group_weighs_three_times_the_lowest() -> None:
    """The weights are 1/27, 2/27 and 1/9, normalised; equal scores weigh alike."""
    weights = draw_weights(SCORES)
    raw = np.array([1 / 27, 2 / 27, 1 / 9])[GROUPS]
    np.testing.assert_allclose(weights, raw / raw.sum(), rtol=1e-12)
    np.testing.assert_allclose(draw_weights(np.ones(5)), 0.2)


@pytest.mark.torture
def test_before_the_first_measurement_all_blocks_are_drawn_alike_and_then_by_group() -> None:
    num_seeds = scaled(100, 500, least=500)
    strategy = FedHeLLo(rank=2, blocks=(1,))
    state = start(strategy)
    measured = replace(state, memory=Allocation(state.adapter))
    for known, expected in ((state, np.full(12, 1 / 12)), (measured, draw_weights(SCORES))):
        counts = Counter(
            block
            for seed in range(num_seeds)
            for plan in plans_of(strategy, known, seed, range(4))
            for block in blocks_of(plan)
        )
        num_draws = 4 * num_seeds
        shares = np.array([counts[block] for block in range(NUM_BLOCKS)]) / num_draws
        # Four standard deviations of a share of so many draws.
        assert (np.abs(shares - expected) < 4 * np.sqrt(expected / num_draws)).all()


def test_a_device_keeps_its_blocks_until_the_next_measurement() -> None:
    strategy = FedHeLLo(rank=2, blocks=(6, 9, 12), every=3)
    state, drawn = start(strategy), {}
    for version in range(7):
        plans = plans_of(strategy, state, version, range(4))
        blocks = {plan.device_id: blocks_of(plan) for plan in plans}
        assert [len(b) for b in blocks.values()] == [6, 9, 12, 6]
        if version % 3:
            assert blocks == drawn
        elif version:
            assert blocks != drawn
            assert state.memory.measured is state.adapter
        drawn = blocks
        state = strategy.aggregate(state, updates_of(strategy, state, plans))


def test_a_draw_of_before_the_measurement_does_not_return_with_a_late_update() -> None:
    strategy = FedHeLLo(rank=2, blocks=(6,), every=1)
    state = start(strategy)
    late = updates_of(strategy, state, plans_of(strategy, state, 0, [0]))
    state = strategy.aggregate(
        state, updates_of(strategy, state, plans_of(strategy, state, 1, [1]))
    )
    two_on = replace(strategy, every=50)
    state = two_on.aggregate(state, [replace(late[0], started_from=0)])
    assert 0 not in state.memory.drawn


def test_blocks_are_merged_by_the_examples_of_those_who_trained_them() -> None:
    strategy = FedHeLLo(rank=2, blocks=(6,))
    state = start(strategy)
    updates = updates_of(strategy, state, plans_of(strategy, state, 0, range(4)))
    after = strategy.aggregate(state, updates).adapter
    for key, (a, b) in after.factors.items():
        own = [u for u in updates if key.block in blocks_of(u.plan)]
        old = state.adapter.factors[key]
        if not own:
            assert a.tobytes() == old.a.tobytes()
            continue
        counts = [u.num_examples for u in own]
        ends = [u.adapter.factors[key] for u in own]
        np.testing.assert_allclose(a, np.average([e.a for e in ends], 0, counts), atol=1e-6)
        np.testing.assert_allclose(b, np.average([e.b for e in ends], 0, counts), atol=1e-6)


def test_a_draw_loses_its_lowest_blocks_where_memory_does_not_hold_them() -> None:
    strategy = FedHeLLo(rank=2)
    roomy = fleet()
    top = [plan_of_blocks(roomy, 0, np.arange(12) >= 12 - n, rank=2) for n in range(1, 13)]
    peaks = [roomy.cost(plan).memory.total for plan in top]
    tight = fleet([peaks[3], peaks[0], peaks[0] - 1, peaks[11]])
    for seed in range(20):
        plans = strategy.plan(start(strategy), tight, range(4), np.random.default_rng(seed))
        assert [plan.device_id for plan in plans] == [0, 1, 3]
        for plan in plans:
            budget = tight.memory_budget_bytes(plan.device_id)
            assert tight.cost(plan).memory.total <= budget
        assert blocks_of(plans[1]) == (11,)
        assert len(blocks_of(plans[2])) == 12


def test_the_smallest_fleets_of_other_tests_are_planned_for() -> None:
    strategy = FedHeLLo(rank=2)
    small = fleet_of([device()] * 3)
    state = strategy.init(random_adapter(small.model, 2, np.random.default_rng(0)))
    assert len(strategy.plan(state, small, [0, 1, 2], np.random.default_rng(0))) == 3
