"""RoLoRA trains, sends and averages B and A in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from algorithms.merging.server_optimizers import FedAvgM, WithServerOptimizer
from algorithms.strategies.fedlora import FedLoRA
from algorithms.strategies.rolora import RoLoRA
from algorithms.strategy import ServerState
from devices.vocabulary.plan import ClientUpdate, ModuleKey
from devices.wire.wire import download_bytes, upload_bytes
from tests.algorithms.haflq_fleets import device, fleet_of
from tests.algorithms.static_fleet import random_adapter, trained_update
from traces.arrays import FloatArray

FLEET = fleet_of([device()] * 3)
EXAMPLES = (1, 3, 4)


def start(strategy: RoLoRA) -> ServerState[None]:
    return strategy.init(random_adapter(FLEET.model, strategy.rank, np.random.default_rng(0)))


def updates_of(strategy: RoLoRA, state: ServerState[None], seed: int) -> list[ClientUpdate]:
    rng = np.random.default_rng(seed)
    return [
        trained_update(plan, strategy.broadcast(state, plan), rng, num_examples=n)
        for plan, n in zip(
            strategy.plan(state, FLEET, FLEET.device_ids, rng), EXAMPLES, strict=True
        )
    ]


def product(update: ClientUpdate, key: ModuleKey) -> FloatArray:
    a, b = update.adapter.factors[key]
    return b.astype(np.float64) @ a


def test_each_round_trains_one_factor_and_its_mean_is_exact() -> None:
    """The merged product is the weighted sum of the products, which FedLoRA's is not."""
    strategy = RoLoRA(rank=3)
    state = start(strategy)
    for number in range(4):
        updates = updates_of(strategy, state, number)
        after = strategy.aggregate(state, updates)
        assert {u.plan.terms.trained_factors for u in updates} == {("ab"[number % 2 == 0],)}
        for key, (a, b) in after.adapter.factors.items():
            wanted = sum(n * product(u, key) for n, u in zip(EXAMPLES, updates, strict=True)) / 8
            np.testing.assert_allclose(b.astype(np.float64) @ a, wanted, atol=2e-5)
            old_a, old_b = state.adapter.factors[key]
            kept, frozen = ((a, old_a), (b, old_b))[number % 2]
            assert kept.tobytes() == frozen.tobytes()
        state = after


def test_half_of_the_terms_go_up_and_all_of_them_down() -> None:
    strategy = RoLoRA()
    both = FedLoRA().plan(start(strategy), FLEET, [0], np.random.default_rng(0))[0]
    for version in range(2):
        state = replace(start(strategy), version=version)
        (plan,) = strategy.plan(state, FLEET, [0], np.random.default_rng(0))
        assert download_bytes(FLEET.model, plan) == download_bytes(FLEET.model, both)
        frozen = "ab"[version]
        width = sum(layer.factor_width(frozen) for layer in FLEET.model.targets)  # type: ignore[arg-type]
        left_out = 4 * width * FLEET.model.num_blocks * strategy.rank
        whole = upload_bytes(FLEET.model, both.terms)
        assert upload_bytes(FLEET.model, plan.terms) == whole - left_out


def test_a_late_update_moves_the_factor_that_it_trained() -> None:
    strategy = RoLoRA(rank=3)
    state = start(strategy)
    of_b = updates_of(strategy, state, 0)
    now = strategy.aggregate(state, of_b)
    of_a = updates_of(strategy, now, 1)
    mixed = strategy.aggregate(now, [of_a[0], *of_b[1:]]).adapter
    for key, (a, b) in mixed.factors.items():
        np.testing.assert_allclose(a, of_a[0].adapter.factors[key].a, atol=1e-6)
        wanted = sum(n * u.adapter.factors[key].b for n, u in ((3, of_b[1]), (4, of_b[2]))) / 7
        np.testing.assert_allclose(b, wanted, atol=1e-6)


def test_a_server_optimizer_leaves_the_factor_alone_whose_turn_it_is_not() -> None:
    """The optimizer's momentum of B moves no B in the round of A."""
    strategy = WithServerOptimizer(RoLoRA(rank=3), FedAvgM(momentum=0.9))
    state = strategy.init(start(RoLoRA(rank=3)).adapter)
    for number in range(3):
        rng = np.random.default_rng(number)
        plans = strategy.plan(state, FLEET, FLEET.device_ids, rng)
        updates = [trained_update(p, strategy.broadcast(state, p), rng) for p in plans]
        after = strategy.aggregate(state, updates)
        for key, factors in after.adapter.factors.items():
            moved = [
                bool((new != old).any())
                for new, old in zip(factors, state.adapter.factors[key], strict=True)
            ]
            assert moved == [number % 2 == 1, number % 2 == 0]
        state = after


@pytest.mark.parametrize("depth", [1, "common"])
def test_depth_is_the_same_in_both_turns(depth: int | str) -> None:
    strategy = RoLoRA(depth=depth)  # type: ignore[arg-type]
    plans: Sequence[object] = [
        strategy.plan(replace(start(strategy), version=v), FLEET, [0], np.random.default_rng(0))[
            0
        ].depth
        for v in range(2)
    ]
    assert plans[0] == plans[1] == (1 if depth == 1 else FLEET.model.num_blocks)
