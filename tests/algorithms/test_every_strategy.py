"""These tests check what holds of every scheduler in the registry, on one fleet of very different
devices."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from algorithms.registry import STRATEGIES
from algorithms.strategies.fedlora import FedLoRA
from algorithms.strategy import NO_STREAM, ServerState, StrategyError
from devices.vocabulary.merged import multiplied_out
from devices.vocabulary.plan import (
    Adapter,
    Broadcast,
    ClientUpdate,
    ModuleKey,
    Timing,
    TrainingPlan,
)
from tests.algorithms.haflq_fleets import device, fleet_of
from tests.algorithms.static_fleet import StaticFleet, random_adapter, spoil, trained_update
from tests.kinds import FEDERATED, WHOLE
from traces.arrays import FloatArray

PADDING = ("zeropad", "hetlora", "fah-qlora")
"""The strategies that count a term as zero where a device does not hold it, as their papers say."""

SENDS_ALL = ("fedlora", "fedex-lora", "lora-fair", "scaffold")

PRODUCTS = ("flexlora", "flora", "lora-fair")
"""The strategies that merge B A, whose terms change in each round: their own tests check sums."""


def fleet_for(kind: str, mixed: StaticFleet) -> StaticFleet:
    """Return the mixed fleet, or five roomy devices for a strategy that trains all blocks."""
    return fleet_of([device()] * 5) if kind in WHOLE else mixed


def plans_of(
    strategy: Any, state: ServerState[Any], fleet: StaticFleet, cohort: Sequence[int] | None = None
) -> list[TrainingPlan]:
    rng = np.random.default_rng(3)
    return list(strategy.plan(state, fleet, cohort or fleet.device_ids, rng))


def a_round(
    kind: str, mixed: StaticFleet, rank: int = 8
) -> tuple[Any, ServerState[Any], list[ClientUpdate]]:
    make: Any = STRATEGIES[kind]
    strategy = make(rank=rank)
    rng = np.random.default_rng(5)
    state = strategy.init(random_adapter(mixed.model, rank, rng))
    updates = [
        trained_update(
            plan,
            strategy.broadcast(state, plan),
            rng,
            num_examples=7 + plan.device_id,
            timing=Timing(1.0, 2.0, 1.0 + plan.device_id),
        )
        for plan in plans_of(strategy, state, fleet_for(kind, mixed))
    ]
    return strategy, state, updates


@pytest.mark.parametrize("kind", STRATEGIES)
def test_every_plan_fits_its_device_in_every_round(kind: str, mixed: StaticFleet) -> None:
    strategy, state, updates = a_round(kind, mixed)
    fleet = fleet_for(kind, mixed)
    for _ in range(4):
        plans = plans_of(strategy, state, fleet)
        assert len({plan.device_id for plan in plans}) == len(plans) > 0
        for plan in plans:
            assert fleet.cost(plan).memory.total <= fleet.memory_budget_bytes(plan.device_id)
            assert plan.terms.uploaded.any() == (kind in FEDERATED)
            assert plan.local_steps == fleet.local_steps(plan.device_id)
        state = strategy.aggregate(state, updates)


@pytest.mark.parametrize("kind", [kind for kind in FEDERATED if not STRATEGIES[kind].draws])
def test_a_strategy_that_says_so_plans_without_random_numbers(
    kind: str, mixed: StaticFleet
) -> None:
    strategy, state, updates = a_round(kind, mixed)
    fleet = fleet_for(kind, mixed)
    for now in (state, strategy.aggregate(state, updates)):
        drawn = strategy.plan(now, fleet, fleet.device_ids, NO_STREAM)
        plans = plans_of(strategy, now, fleet)
        assert [plan.workload for plan in drawn] == [plan.workload for plan in plans]


def test_a_plan_of_ones_own_draws_unless_it_says_otherwise(mixed: StaticFleet) -> None:
    class Own(FedLoRA):
        def plan(self, state: Any, fleet: Any, cohort: Any, rng: np.random.Generator) -> Any:
            return super().plan(state, fleet, [d for d in cohort if rng.random() < 0.5], rng)

    class Silent(Own):
        draws = False

    assert (FedLoRA.draws, Own.draws, Silent.draws) == (False, True, False)
    state = Own().init(random_adapter(mixed.model, 8, np.random.default_rng(5)))
    with pytest.raises(StrategyError, match=r"draws is False must draw nothing, got rng\.rand"):
        Silent().plan(state, mixed, mixed.device_ids, NO_STREAM)


@pytest.mark.parametrize("kind", STRATEGIES)
@pytest.mark.parametrize("rank", [3, 8])
def test_an_aggregation_makes_one_version_and_keeps_names_shapes_and_scale(
    kind: str, rank: int, mixed: StaticFleet
) -> None:
    strategy, state, updates = a_round(kind, mixed, rank)
    after = strategy.aggregate(state, updates)
    assert after.version == state.version + 1
    old, new = state.adapter, after.adapter
    assert new.scale == old.scale
    assert {k: (f.a.shape, f.b.shape) for k, f in new.factors.items()} == {
        k: (f.a.shape, f.b.shape) for k, f in old.factors.items()
    }
    assert {n: v.shape for n, v in new.head.items()} == {n: v.shape for n, v in old.head.items()}
    for factors in new.factors.values():
        assert factors.a.dtype == factors.b.dtype == np.float32
        assert np.isfinite(factors.a).all()
        assert np.isfinite(factors.b).all()


@pytest.mark.parametrize("kind", STRATEGIES)
def test_every_plan_has_the_proximal_term_that_the_experiment_asks_for(kind: str) -> None:
    strategy: Any = STRATEGIES[kind](rank=8)
    for mu in (0.0, 0.3):
        fleet = fleet_of([device()] * 2, proximal_mu=mu)
        state = strategy.init(random_adapter(fleet.model, 8, np.random.default_rng(0)))
        plans = plans_of(strategy, state, fleet)
        assert [plan.proximal_mu for plan in plans] == [mu, mu]


@pytest.mark.parametrize("kind", STRATEGIES)
def test_what_stands_in_an_update_for_terms_not_sent_reaches_nothing(
    kind: str, mixed: StaticFleet
) -> None:
    strategy, state, updates = a_round(kind, mixed)
    spoiled = [replace(u, adapter=spoil(u.adapter, u.plan)) for u in updates]
    if kind not in SENDS_ALL:
        assert any(
            u.adapter.digest != v.adapter.digest for u, v in zip(updates, spoiled, strict=True)
        )
    clean, dirty = strategy.aggregate(state, updates), strategy.aggregate(state, spoiled)
    assert clean.adapter.digest == dirty.adapter.digest


@pytest.mark.parametrize("kind", FEDERATED)
def test_devices_start_from_the_global_model_which_every_update_has_moved(
    kind: str, mixed: StaticFleet
) -> None:
    """What any device sends is in what all are sent next, so none trains by itself unnoticed."""
    strategy, state, updates = a_round(kind, mixed)
    after = strategy.aggregate(state, updates)
    fleet = fleet_for(kind, mixed)
    for plan in plans_of(strategy, after, fleet):
        broadcast: Broadcast = strategy.broadcast(after, plan)
        assert broadcast.version == after.version
        if plan.terms.use == "fresh":  # B is zero on both sides, and A the device's own
            assert not any(b.any() for _, b in broadcast.adapter.factors.values())
            fresh = replace(broadcast.adapter, factors=after.adapter.factors)
            assert fresh.digest == after.adapter.digest
        elif plan.terms.use == "own_b":  # B and the head are the device's own
            for key, (a, _) in broadcast.adapter.factors.items():
                assert a.tobytes() == after.adapter.factors[key].a.tobytes()
        else:
            assert broadcast.adapter.digest == after.adapter.digest
    for k, update in enumerate(updates):
        unmoved = replace(update, adapter=update.broadcast.adapter)
        without = strategy.aggregate(state, [*updates[:k], unmoved, *updates[k + 1 :]])
        assert any(
            not np.array_equal(
                weight_change(without.adapter, key), weight_change(after.adapter, key)
            )
            for key in after.adapter.factors
        )


def weight_change(adapter: Adapter, key: ModuleKey) -> FloatArray:
    """Return the change (out, in) of one layer since it was pretrained, without the scale."""
    change = multiplied_out(adapter.factors[key])
    if key in adapter.merged.products:
        change += multiplied_out(adapter.merged.products[key])
    return change


@pytest.mark.parametrize("kind", [k for k in FEDERATED if k not in PRODUCTS])
def test_terms_on_which_all_their_senders_agree_come_out_as_sent(
    kind: str, mixed: StaticFleet
) -> None:
    """Where missing terms count as zero, this holds of the terms that all devices sent."""
    strategy, state, updates = a_round(kind, mixed)
    goal = random_adapter(mixed.model, 8, np.random.default_rng(9))
    sent_factors = updates[0].plan.terms.uploaded_factors
    agreed = [replace(u, adapter=goal) for u in updates]
    sent = np.stack([u.plan.terms.uploaded for u in updates])
    known = sent.all(axis=0) if kind in PADDING else sent.any(axis=0)
    assert known.any()
    merged = strategy.aggregate(state, agreed).adapter
    for key, (a, b) in goal.factors.items():
        rows = known[key.block, goal.modules.index(key.module)]
        if "a" in sent_factors:
            np.testing.assert_array_equal(merged.factors[key].a[rows], a[rows])
        if "b" in sent_factors:
            np.testing.assert_array_equal(merged.factors[key].b[:, rows], b[:, rows])


def test_the_page_on_algorithms_has_every_one_in_both_of_its_tables() -> None:
    page = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text("utf-8")
    page = page.partition("## Pacing")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \|", page, flags=re.MULTILINE)
    assert sorted(rows) == sorted([*STRATEGIES] * 2)
