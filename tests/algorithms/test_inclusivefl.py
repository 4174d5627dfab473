"""InclusiveFL gives each device the first blocks and passes momentum down to the last of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from algorithms.merging.lora import holder_weights, mean_adapter
from algorithms.planning.compact_models import compact_plan, counted_alike
from algorithms.strategies.inclusivefl import InclusiveFL, Momentum
from algorithms.strategy import ServerState
from devices.vocabulary.plan import Adapter, ClientUpdate, Factors, TrainingPlan
from tests.algorithms.haflq_fleets import device, fleet_of
from tests.algorithms.static_fleet import random_adapter, trained_update

RANK = 8
FLEET = fleet_of([device()] * 3)


def start_state(strategy: InclusiveFL) -> ServerState[Momentum]:
    """Return a state with every factor and the head at 1."""
    adapter = random_adapter(FLEET.model, RANK, np.random.default_rng(0))
    return strategy.init(shifted(adapter, None))


def shifted(adapter: Adapter, steps: Sequence[float] | None) -> Adapter:
    """Return the adapter with each block's factors moved by its step, or all at 1 without steps."""

    def moved(block: int, factor: np.ndarray) -> np.ndarray:
        return np.ones_like(factor) if steps is None else factor + np.float32(steps[block])

    factors = {
        key: Factors(moved(key.block, a), moved(key.block, b))
        for key, (a, b) in adapter.factors.items()
    }
    return replace(adapter, factors=factors)


def update_of(
    state: ServerState[Momentum], device_id: int, steps: Sequence[float], num_examples: int = 1
) -> ClientUpdate:
    """Return the update of a device with as many blocks as there are steps."""
    size = len(steps)
    plan = compact_plan(FLEET, device_id, np.arange(4) < size, rank=RANK)
    broadcast = InclusiveFL(rank=RANK).broadcast(state, plan)
    adapter = shifted(state.adapter, [*steps, *[0.0] * (4 - size)])
    return ClientUpdate(plan, broadcast, adapter, num_examples, 0.0)


def a_round(
    strategy: InclusiveFL, state: ServerState[Momentum], steps: Mapping[int, Sequence[float]]
) -> tuple[ServerState[Momentum], list[float]]:
    """Return the state after a round, and by how much each block moved."""
    after = strategy.aggregate(state, [update_of(state, d, s) for d, s in steps.items()])
    moved = [np.nan] * 4
    for key, (a, b) in after.adapter.factors.items():
        changes = np.concatenate(
            [(a - state.adapter.factors[key].a).ravel(), (b - state.adapter.factors[key].b).ravel()]
        )
        assert np.ptp(changes) < 1e-6
        moved[key.block] = float(changes.mean())
    return after, moved


def test_the_first_round_is_the_plain_mean_over_the_holders_of_a_block() -> None:
    strategy = InclusiveFL()
    _, moved = a_round(strategy, start_state(strategy), {0: (1, 2), 1: (3, 4, 5, 6)})
    assert moved == pytest.approx([2, 3, 5, 6], abs=1e-5)


def test_the_last_block_of_a_shallow_model_takes_in_a_fifth_of_what_lay_above_it_last_round() -> (
    None
):
    strategy = InclusiveFL()
    state, _ = a_round(strategy, start_state(strategy), {0: (1, 2), 1: (3, 4, 10, 20)})
    _, moved = a_round(strategy, state, {0: (1, 2), 1: (0, 0, 0, 0)})
    distilled = 0.8 * 2 + 0.2 * (10 + 20) / 2
    assert moved == pytest.approx([0.5, distilled / 2, 0, 0], abs=1e-5)


def test_momentum_comes_from_the_next_larger_size_alone() -> None:
    strategy = InclusiveFL(distillation=0.5)
    first = {0: (0,), 1: (0, 8, 16), 2: (100, 100, 100, 100)}
    state, _ = a_round(strategy, start_state(strategy), first)
    _, moved = a_round(strategy, state, {0: (2,), 1: (0, 0, 4), 2: (0, 0, 0, 0)})
    small = 0.5 * 2 + 0.5 * (8 + 16) / 2  # of blocks 2 and 3 in the model of three
    middle = 0.5 * 4 + 0.5 * 100
    assert moved == pytest.approx([small / 3, 0, middle / 2, 0], abs=1e-5)


def test_momentum_is_the_mean_of_what_devices_of_a_size_sent_before_any_distillation() -> None:
    strategy = InclusiveFL(distillation=0.5)
    first = {0: (4,), 1: (0, 6), 2: (0, 2)}
    state, _ = a_round(strategy, start_state(strategy), first)
    # A second round gives the same result, so what was passed down does not count as momentum.
    for _ in range(2):
        state, moved = a_round(strategy, state, {0: (4,), 1: (0, 6), 2: (0, 2)})
        assert moved == pytest.approx([(0.5 * 4 + 0.5 * 4) / 3, 4, 0, 0], abs=1e-5)


def test_momentum_waits_while_nobody_of_its_size_takes_part() -> None:
    strategy = InclusiveFL(distillation=0.5)
    state, _ = a_round(strategy, start_state(strategy), {1: (0, 6)})
    for _ in range(2):
        state, moved = a_round(strategy, state, {0: (0,)})
        assert moved == pytest.approx([3, 0, 0, 0], abs=1e-5)
    state, _ = a_round(strategy, state, {1: (0, 8)})
    _, moved = a_round(strategy, state, {0: (0,)})
    assert moved == pytest.approx([4, 0, 0, 0], abs=1e-5)


def test_the_largest_model_keeps_its_updates_whole() -> None:
    strategy = InclusiveFL()
    state, _ = a_round(strategy, start_state(strategy), {0: (1, 1), 1: (9, 9, 9, 9)})
    _, moved = a_round(strategy, state, {1: (1, 2, 3, 4)})
    assert moved == pytest.approx([1, 2, 3, 4], abs=1e-5)


def test_without_distillation_every_round_is_the_plain_mean_over_holders_to_the_bit() -> None:
    strategy, rng = InclusiveFL(distillation=0.0), np.random.default_rng(4)
    state = strategy.init(random_adapter(FLEET.model, RANK, rng))
    for _ in range(3):
        updates = [
            trained_update(plan, strategy.broadcast(state, plan), rng, num_examples=1 + k)
            for k, plan in enumerate(plans_of((1, 2, 4)))
        ]
        alike = counted_alike(updates)
        expected = mean_adapter(state.adapter, alike, holder_weights(alike))
        state = strategy.aggregate(state, updates)
        assert state.adapter.digest == expected.digest


def plans_of(blocks: tuple[int, ...]) -> list[TrainingPlan]:
    strategy, rng = InclusiveFL(rank=RANK, blocks=blocks), np.random.default_rng(0)
    return list(strategy.plan(start_state(strategy), FLEET, FLEET.device_ids, rng))


def test_a_device_holds_the_first_blocks_that_fit() -> None:
    plans = plans_of((1, 2, 4))
    expected = [[True, False, False, False], [True, True, False, False], [True] * 4]
    assert [plan.present.tolist() for plan in plans] == expected
    assert [plan.depth for plan in plans] == [1, 2, 4]


def test_a_device_without_room_for_one_block_sits_out() -> None:
    strategy, fleet = InclusiveFL(), fleet_of([device(100), device()])
    plans = strategy.plan(start_state(strategy), fleet, [0, 1], np.random.default_rng(0))
    assert [plan.device_id for plan in plans] == [1]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_momentum_does_not_depend_on_the_order_of_arrival(order: tuple[int, ...]) -> None:
    strategy = InclusiveFL()
    digests = set()
    for places in ((0, 1, 2), order):
        rng = np.random.default_rng(5)
        state = strategy.init(random_adapter(FLEET.model, RANK, rng))
        for _ in range(3):
            updates = [
                trained_update(plan, strategy.broadcast(state, plan), rng)
                for plan in plans_of((1, 4, 4))
            ]
            state = strategy.aggregate(state, [updates[k] for k in places])
        digests.add(state.adapter.digest)
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"blocks": (0,)}, "blocks must be memory or numbers of at least 1"),
        ({"distillation": 1.5}, r"distillation must be in \[0, 1\], got 1.5"),
    ],
)
def test_a_wrong_option_is_named_with_what_must_hold(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InclusiveFL(**given)
