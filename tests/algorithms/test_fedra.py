"""FedRA draws blocks at random and takes plain means over the devices that drew them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from algorithms.planning.compact_models import compact_plan
from algorithms.strategies.fedra import FedRA
from devices.vocabulary.plan import ModuleKey, TrainingPlan
from tests.algorithms.haflq_fleets import device, fleet_of
from tests.algorithms.static_fleet import StaticFleet, random_adapter, trained_update

ROOMY_FLEET = fleet_of([device()] * 3)


def plans_of(strategy: FedRA, fleet: StaticFleet, seed: int = 0) -> list[TrainingPlan]:
    rng = np.random.default_rng(seed)
    state = strategy.init(fleet.model.initial_adapter(strategy.rank, strategy.alpha, rng))
    return list(strategy.plan(state, fleet, fleet.device_ids, rng))


def drawn(plan: TrainingPlan) -> tuple[int, ...]:
    return tuple(np.flatnonzero(plan.present).tolist())


def test_every_set_of_blocks_is_as_likely_as_another() -> None:
    """In 1,800 draws of 2 of 4 blocks each of the 6 sets comes 300 times, with a standard deviation
    of sqrt(1800 * 1/6 * 5/6) = 15.8. 80 is 5 of them; one of 6 beyond has odds of 1 in 290,000."""
    sets = Counter(
        drawn(plan)
        for seed in range(600)
        for plan in plans_of(FedRA(blocks=(2,)), ROOMY_FLEET, seed)
    )
    assert len(sets) == 6
    assert all(abs(count - 300) < 80 for count in sets.values())


def test_devices_and_rounds_draw_anew() -> None:
    rounds = [
        [drawn(plan) for plan in plans_of(FedRA(blocks=(2,)), ROOMY_FLEET, seed)]
        for seed in range(8)
    ]
    assert len({tuple(sets) for sets in rounds}) > 1
    assert any(len(set(sets)) > 1 for sets in rounds)


def test_what_one_device_can_hold_does_not_move_another_s_draw() -> None:
    few, many = (plans_of(FedRA(blocks=limits), ROOMY_FLEET) for limits in ((1, 2), (4, 2)))
    assert drawn(few[1]) == drawn(many[1])


def test_a_device_without_room_for_one_block_sits_out() -> None:
    plans = plans_of(FedRA(), fleet_of([device(), device(100)]))
    assert [plan.device_id for plan in plans] == [0]
    assert plans_of(FedRA(), fleet_of([device(100)])) == []


def test_a_block_is_the_plain_mean_over_those_who_drew_it_and_stays_where_nobody_did() -> None:
    strategy, rng = FedRA(), np.random.default_rng(1)
    state = strategy.init(random_adapter(ROOMY_FLEET.model, 8, rng))
    updates = []
    for device_id, (blocks, num_examples) in enumerate((((0, 1), 1), ((1,), 30), ((1, 3), 5))):
        plan = compact_plan(ROOMY_FLEET, device_id, np.isin(np.arange(4), blocks), rank=8)
        start = strategy.broadcast(state, plan)
        updates.append(trained_update(plan, start, rng, num_examples=num_examples))
    merged = strategy.aggregate(state, updates).adapter
    for block, senders in ((0, [0]), (1, [0, 1, 2]), (3, [2])):
        for module in merged.modules:
            key = ModuleKey(block, module)
            for factor in (0, 1):
                sent = [updates[k].adapter.factors[key][factor] for k in senders]
                mean = np.mean(np.array(sent, dtype=np.float64), axis=0)
                np.testing.assert_allclose(merged.factors[key][factor], mean, atol=1e-6)
    for module in merged.modules:
        key = ModuleKey(2, module)
        np.testing.assert_array_equal(merged.factors[key].a, state.adapter.factors[key].a)
        np.testing.assert_array_equal(merged.factors[key].b, state.adapter.factors[key].b)
    for name, values in merged.head.items():
        mean = np.mean([u.adapter.head[name].astype(np.float64) for u in updates], axis=0)
        np.testing.assert_allclose(values, mean, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"blocks": ()}, r"blocks must be memory or numbers of at least 1, got \(\)"),
        ({"blocks": (3, 0)}, r"blocks must be memory or numbers of at least 1, got \(3, 0\)"),
    ],
)
def test_a_wrong_option_is_named_with_what_must_hold(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FedRA(**given)
