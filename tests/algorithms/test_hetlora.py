"""HetLoRA weights updates by the norm of B A and lets ranks shrink."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.strategies.hetlora import HetLoRA, PrunedRanks, product_norm, tail_score
from algorithms.strategy import ServerState
from devices.vocabulary.plan import (
    Adapter,
    Broadcast,
    ClientUpdate,
    Factors,
    TailPenalty,
    TrainingPlan,
)
from tests.algorithms.haflq_fleets import device, fleet_of
from tests.algorithms.static_fleet import StaticFleet, random_adapter, trained_update

RANK = 8


def fleet_of_ranks(*speeds: float) -> StaticFleet:
    """Return a fleet whose adapted layers are 8 x 8 and 32 x 8, so no size tells a factor's axes
    apart."""
    return fleet_of([device(flops_per_s=s) for s in speeds])


def start(strategy: HetLoRA, fleet: StaticFleet) -> ServerState[PrunedRanks]:
    return strategy.init(random_adapter(fleet.model, strategy.rank, np.random.default_rng(0)))


def plans_of(
    strategy: HetLoRA, fleet: StaticFleet, state: ServerState[PrunedRanks]
) -> list[TrainingPlan]:
    return list(strategy.plan(state, fleet, fleet.device_ids, np.random.default_rng(0)))


def rank_of(plan: TrainingPlan) -> int:
    (rank,) = np.unique(plan.terms.held.sum(axis=2))
    return int(rank)


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)), st.integers(0, 2**32 - 1)
)
def test_product_norm_is_that_of_the_dense_product(sizes: tuple[int, ...], seed: int) -> None:
    rank, inputs, outputs = sizes
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(rank, inputs)).astype(np.float32)
    b = rng.normal(size=(outputs, rank)).astype(np.float32)
    dense = np.linalg.norm(b.astype(np.float64) @ a.astype(np.float64))
    # Squared entries cancel: sqrt of double precision is what is left of the digits.
    assert product_norm(Factors(a, b)) == pytest.approx(dense, rel=1e-6, abs=1e-6)


def test_product_norm_never_forms_the_product() -> None:
    width = 4000
    rng = np.random.default_rng(0)
    factors = Factors(
        rng.normal(size=(2, width)).astype(np.float32),
        rng.normal(size=(width, 2)).astype(np.float32),
    )
    tracemalloc.start()
    product_norm(factors)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 4 * width * width / 10


def scaled_updates(
    fleet: StaticFleet, norms: list[float], examples: list[int]
) -> tuple[ServerState[PrunedRanks], list[ClientUpdate]]:
    """Return updates of the same direction, whose B A have these norms."""
    strategy = HetLoRA()
    state = start(strategy, fleet)
    updates = []
    for plan, norm, n in zip(plans_of(strategy, fleet, state), norms, examples, strict=True):
        factors = {
            key: Factors(a, np.float32(norm) * b) for key, (a, b) in state.adapter.factors.items()
        }
        adapter = replace(state.adapter, factors=factors)
        updates.append(ClientUpdate(plan, Broadcast(0, state.adapter), adapter, n, 0.0))
    return state, updates


def test_a_device_s_weight_is_the_norm_of_its_update_and_not_its_examples() -> None:
    fleet = fleet_of_ranks(1e9, 1e9)
    state, updates = scaled_updates(fleet, [3.0, 1.0], [1, 1000])
    merged = HetLoRA().aggregate(state, updates).adapter
    for key, (a, b) in state.adapter.factors.items():
        np.testing.assert_allclose(merged.factors[key].a, a, rtol=1e-6)
        np.testing.assert_allclose(merged.factors[key].b, (0.75 * 3 + 0.25) * b, rtol=1e-5)


def test_examples_weigh_where_no_update_has_a_norm() -> None:
    fleet = fleet_of_ranks(1e9, 1e9)
    state, updates = scaled_updates(fleet, [0.0, 0.0], [1, 3])
    key = next(iter(state.adapter.factors))
    a, b = state.adapter.factors[key]
    moved = {**updates[1].adapter.factors, key: Factors(a + 4, np.zeros_like(b))}
    updates[1] = replace(updates[1], adapter=replace(updates[1].adapter, factors=moved))
    merged = HetLoRA(self_pruning="none").aggregate(state, updates).adapter
    np.testing.assert_allclose(merged.factors[key].a, a + 3, rtol=1e-5)


def test_terms_that_a_device_lacks_count_as_zero_with_its_norm_s_weight() -> None:
    fleet = fleet_of_ranks(1e9, 1e9, 1e9 / 2.1)  # ranks 8, 8, 2
    state, updates = scaled_updates(fleet, [1.0, 1.0, 1.0], [1, 1, 1])
    merged = HetLoRA().aggregate(state, updates).adapter
    for key, (a, b) in state.adapter.factors.items():
        whole, part = product_norm(Factors(a, b)), product_norm(Factors(a[:2], b[:, :2]))
        share = 2 * whole / (2 * whole + part)
        np.testing.assert_allclose(merged.factors[key].a[:2], a[:2], rtol=1e-5)
        np.testing.assert_allclose(merged.factors[key].a[2:], share * a[2:], rtol=1e-5)
        np.testing.assert_allclose(merged.factors[key].b[:, 2:], share * b[:, 2:], rtol=1e-5)


def test_equal_updates_of_one_rank_average_to_themselves() -> None:
    fleet = fleet_of_ranks(1e9, 1e9, 1e9)
    strategy = HetLoRA()
    state = start(strategy, fleet)
    plans = plans_of(strategy, fleet, state)
    update = trained_update(plans[0], strategy.broadcast(state, plans[0]), np.random.default_rng(1))
    updates = [replace(update, plan=plan, num_examples=n + 1) for n, plan in enumerate(plans)]
    assert strategy.aggregate(state, updates).adapter.digest == update.adapter.digest


def test_tail_score_cuts_rows_of_a_and_columns_of_b() -> None:
    adapter = random_adapter(fleet_of_ranks(1e9).model, 3, np.random.default_rng(0))
    expected = sum(
        float(np.sqrt((f.b[:, 1] ** 2 + f.b[:, 2] ** 2).sum()))
        * float(np.sqrt((f.a[1] ** 2 + f.a[2] ** 2).sum()))
        for f in adapter.factors.values()
    )
    assert tail_score(adapter, 1, 3) == pytest.approx(expected, rel=1e-6)


def with_tail(update: ClientUpdate, factor: float) -> ClientUpdate:
    """Return the update that moved the broadcast by scaling A of the rank's last term alone."""
    last = rank_of(update.plan) - 1
    factors = {}
    for key, (a, b) in update.broadcast.adapter.factors.items():
        scaled = a.copy()
        scaled[last] *= factor
        factors[key] = Factors(scaled, b)
    adapter = replace(update.broadcast.adapter, factors=factors)
    return replace(update, adapter=adapter)


def after_tails(
    strategy: HetLoRA, fleet: StaticFleet, factors: list[float]
) -> tuple[ServerState[PrunedRanks], ServerState[PrunedRanks]]:
    """Return the states before and after a round that shrank or grew the tail of each rank."""
    state = start(strategy, fleet)
    rng = np.random.default_rng(1)
    updates = [
        with_tail(trained_update(plan, strategy.broadcast(state, plan), rng), factor)
        for plan, factor in zip(plans_of(strategy, fleet, state), factors, strict=True)
    ]
    return state, strategy.aggregate(state, updates)


def test_a_device_whose_tail_shrank_gets_a_lower_rank_from_then_on() -> None:
    fleet = fleet_of_ranks(1e9, 1e9, 1e9 / 1.9)  # ranks 8, 8, 4
    strategy = HetLoRA(self_pruning="server", kept_share=0.75)
    _, after = after_tails(strategy, fleet, [0.5, 2.0, 0.9])
    assert [rank_of(plan) for plan in plans_of(strategy, fleet, after)] == [6, 8, 3]


def test_gamma_near_one_still_cuts_a_term_off_a_small_rank() -> None:
    fleet = fleet_of_ranks(1e9)
    strategy = HetLoRA(self_pruning="server")
    _, after = after_tails(strategy, fleet, [0.5])
    assert [rank_of(plan) for plan in plans_of(strategy, fleet, after)] == [7]


def test_a_pruned_tail_is_not_merged() -> None:
    fleet = fleet_of_ranks(1e9)
    before, after = after_tails(HetLoRA(self_pruning="server"), fleet, [0.5])
    for key, (a, _) in before.adapter.factors.items():
        np.testing.assert_array_equal(after.adapter.factors[key].a[7], a[7])  # nobody sent it


def test_no_rank_falls_below_the_smallest() -> None:
    fleet = fleet_of_ranks(1e9, 1e9, 1e9 / 100)  # ranks 4, 4, 3
    strategy = HetLoRA(ranks=(3, 4), self_pruning="server", kept_share=0.5)
    _, after = after_tails(strategy, fleet, [0.5, 0.5, 0.5])
    assert [rank_of(plan) for plan in plans_of(strategy, fleet, after)] == [3, 3, 3]


def test_a_tail_that_stayed_as_it_was_is_kept() -> None:
    """As in the first round without training, when every B is zero."""
    fleet = fleet_of_ranks(1e9)
    strategy = HetLoRA(self_pruning="server")
    _, after = after_tails(strategy, fleet, [1.0])
    assert [rank_of(plan) for plan in plans_of(strategy, fleet, after)] == [8]


def test_without_self_pruning_ranks_stay() -> None:
    fleet = fleet_of_ranks(1e9)
    strategy = HetLoRA(self_pruning="none")
    _, after = after_tails(strategy, fleet, [0.5])
    assert [rank_of(plan) for plan in plans_of(strategy, fleet, after)] == [8]


def test_pruned_ranks_are_remembered_when_others_are_pruned() -> None:
    fleet = fleet_of_ranks(1e9, 1e9)
    strategy = HetLoRA(self_pruning="server")
    state = start(strategy, fleet)
    for shrunk in (0, 1):
        plans = plans_of(strategy, fleet, state)
        update = trained_update(
            plans[shrunk], strategy.broadcast(state, plans[shrunk]), np.random.default_rng(1)
        )
        state = strategy.aggregate(state, [with_tail(update, 0.5)])
    assert [rank_of(plan) for plan in plans_of(strategy, fleet, state)] == [7, 7]


def test_the_loss_of_a_device_that_can_shrink_carries_the_norms_of_its_tail() -> None:
    fleet = fleet_of_ranks(1e9, 1e9, 1e9 / 1.9, 1e9 / 100)  # ranks 8, 8, 4, 2
    strategy = HetLoRA(kept_share=0.75, tail_penalty=0.01)
    penalties = [p.tail_penalty for p in plans_of(strategy, fleet, start(strategy, fleet))]
    assert penalties == [TailPenalty(0.01, 6), TailPenalty(0.01, 6), TailPenalty(0.01, 3), None]


@pytest.mark.parametrize("options", [{"self_pruning": "none"}, {"tail_penalty": 0.0}])
def test_without_pruning_or_its_weight_the_loss_is_left_alone(options: dict[str, Any]) -> None:
    fleet = fleet_of_ranks(1e9)
    strategy = HetLoRA(**options)
    (plan,) = plans_of(strategy, fleet, start(strategy, fleet))
    assert plan.tail_penalty is None


def test_one_scale_for_all_ranks() -> None:
    fleet = fleet_of_ranks(1e9, 1e9, 1e9 / 2.1)
    strategy = HetLoRA(alpha=16.0)
    state = strategy.init(fleet.model.initial_adapter(RANK, 16.0, np.random.default_rng(0)))
    adapters: list[Adapter] = [
        strategy.broadcast(state, plan).adapter for plan in plans_of(strategy, fleet, state)
    ]
    assert [adapter.scale for adapter in adapters] == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"ranks": ()}, r"ranks must be rising numbers of at least 1, got \(\)"),
        ({"self_pruning": "local"}, "self_pruning must be one of none, server, got 'local'"),
        ({"kept_share": 1.0}, r"kept_share must be in \(0, 1\), got 1.0"),
        ({"tail_penalty": -0.1}, "tail_penalty must be at least 0 and finite, got -0.1"),
    ],
)
def test_a_wrong_option_is_named_with_what_must_hold(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HetLoRA(**given)
