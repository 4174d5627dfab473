"""FLoRA sums exactly into the base, begins fresh adapters and charges the bytes of missed sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.merging.staleness import with_change_added
from algorithms.strategies.flora import FLoRA, Fresh
from algorithms.strategy import ServerState
from devices.cost.closed_form import ClosedFormCost
from devices.vocabulary.merged import multiplied_out
from devices.vocabulary.plan import Broadcast, ClientUpdate, Factors, ModuleKey, TrainingPlan
from devices.wire.messages import HEADER
from devices.wire.wire import decode_broadcast, encode_broadcast
from tests.algorithms.haflq_fleets import device, fleet_of
from tests.algorithms.static_fleet import (
    StaticFleet,
    device_profile,
    random_adapter,
    trained_update,
)
from traces.arrays import FloatArray

STRATEGY = FLoRA(rank=4, ranks=(1, 2, 4))
FLEET = fleet_of([device(flops_per_s=s) for s in (1e9, 1e9, 2e8, 2e8, 1e9, 1e9)])
"""Devices 2 and 3 train one term of each module, the others four."""
MODEL = FLEET.model
SIDES = {layer.name: (layer.out_features, layer.in_features) for layer in MODEL.targets}
"""8 x 8, where a term has 16 numbers and the matrix 64; and 32 x 8, with 40 and 256."""


def start(seed: int = 0) -> ServerState[Fresh]:
    return STRATEGY.init(MODEL.initial_adapter(4, 16.0, np.random.default_rng(seed)))


def plans_of(
    state: ServerState[Fresh], cohort: Sequence[int], fleet: StaticFleet = FLEET
) -> list[TrainingPlan]:
    return list(STRATEGY.plan(state, fleet, cohort, np.random.default_rng(0)))


def updates_of(
    state: ServerState[Fresh], cohort: Sequence[int], seed: int = 0
) -> list[ClientUpdate]:
    rng = np.random.default_rng(seed)
    return [
        trained_update(
            plan, STRATEGY.broadcast(state, plan), rng, num_examples=int(rng.integers(1, 50))
        )
        for plan in plans_of(state, cohort)
    ]


def after_rounds(cohorts: Sequence[Sequence[int]], seed: int = 0) -> list[ServerState[Fresh]]:
    states = [start(seed)]
    for k, cohort in enumerate(cohorts):
        updates = updates_of(states[-1], cohort, seed + k)
        states.append(STRATEGY.aggregate(states[-1], updates))
    return states


def base_of(state: ServerState[Fresh], key: ModuleKey) -> FloatArray:
    """Return what was merged into a layer (out, in)."""
    product = state.adapter.merged.products.get(key)
    return np.zeros(SIDES[key.module]) if product is None else multiplied_out(product)


def weighted_sum(updates: Sequence[ClientUpdate], key: ModuleKey) -> FloatArray:
    """Return the weighted sum, in float64, of the terms that were sent."""
    total = np.zeros(SIDES[key.module])
    for update in updates:
        a, b = (factor.astype(np.float64) for factor in update.adapter.factors[key])
        rank = int(update.plan.terms.uploaded[0, 0].sum())
        total += update.num_examples * b[:, :rank] @ a[:rank]
    return total / sum(u.num_examples for u in updates)


@given(
    st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=1, max_size=4),
    st.integers(0, 2**31),
)
@settings(max_examples=25)
def test_the_base_moves_by_the_weighted_sum_of_b_a_in_every_round(
    cohorts: list[set[int]], seed: int
) -> None:
    """Ranks 4 and 1 are stacked side by side at first, and become a matrix in the end."""
    states = [start(seed)]
    wanted = {key: np.zeros(SIDES[key.module]) for key in states[0].adapter.factors}
    for k, cohort in enumerate(cohorts):
        updates = updates_of(states[-1], sorted(cohort), seed + k)
        states.append(STRATEGY.aggregate(states[-1], updates))
        for key in wanted:
            wanted[key] = wanted[key] + weighted_sum(updates, key)
            assert (
                np.abs(base_of(states[-1], key) - wanted[key]).max()
                <= 1e-5 * np.abs(wanted[key]).max()
            )


def test_the_worked_example() -> None:
    """With n = 1 and 3, and b a = 2 * 4 and 1 * 8, the mean is 1/4 * 8 + 3/4 * 8 = 8."""
    state = start()
    updates = updates_of(state, [2, 3])
    for k, (update, examples) in enumerate(zip(updates, (1, 3), strict=True)):
        factors = {
            key: Factors(np.full_like(a, (4, 8)[k]), np.full_like(b, (2, 1)[k]))
            for key, (a, b) in update.adapter.factors.items()
        }
        adapter = replace(update.adapter, factors=factors)
        updates[k] = replace(update, adapter=adapter, num_examples=examples)
    after = STRATEGY.aggregate(state, updates)
    for key in after.adapter.factors:
        np.testing.assert_array_equal(base_of(after, key), np.full(SIDES[key.module], 8.0))


def test_equal_updates_average_to_themselves() -> None:
    state = start()
    updates = updates_of(state, [0, 1])
    equal = [replace(u, adapter=updates[0].adapter) for u in updates]
    after = STRATEGY.aggregate(state, equal)
    for key, (a, b) in updates[0].adapter.factors.items():
        one = b.astype(np.float64) @ a
        np.testing.assert_allclose(base_of(after, key), one, atol=1e-6 * np.abs(one).max())


def test_the_same_factors_mean_the_same_update_at_every_rank() -> None:
    """A device that trains one term and one that trains four add what their terms say, no more."""
    state = start()
    for device_id in (0, 3):
        (update,) = updates_of(state, [device_id])
        first = np.arange(4) < 1  # the first term as it is, the others zero
        factors = {
            key: Factors(a * first[:, None], b * first)
            for key, (a, b) in random_adapter(MODEL, 4, np.random.default_rng(8)).factors.items()
        }
        sent = replace(update, adapter=replace(update.adapter, factors=factors))
        after = STRATEGY.aggregate(state, [sent])
        for key, (a, b) in factors.items():
            np.testing.assert_allclose(base_of(after, key), b @ a, rtol=1e-6)
        assert after.adapter.scale == state.adapter.scale


def test_every_device_starts_fresh_in_every_round_with_an_a_of_its_own() -> None:
    states = after_rounds([[0, 1], [0, 2]])
    drawn = set()
    for state in states:
        for plan in plans_of(state, range(4)):
            broadcast = STRATEGY.broadcast(state, plan)
            assert broadcast.adapter.merged is state.adapter.merged
            for key, (a, b) in broadcast.adapter.factors.items():
                assert not b.any()
                assert np.abs(a).max() <= 1 / np.sqrt(8)
                drawn.add((key, a.tobytes()))
            again = STRATEGY.broadcast(state, plan)
            assert again.adapter.digest == broadcast.adapter.digest
    assert len(drawn) == 3 * 4 * len(states[0].adapter.factors)
    other = start(seed=9)
    (plan,) = plans_of(other, [0])
    key = ModuleKey(0, "query")
    assert (key, STRATEGY.broadcast(other, plan).adapter.factors[key].a.tobytes()) not in drawn


def ranks_missed(state: ServerState[Fresh], device_id: int) -> tuple[int, ...]:
    """Return the missed ranks of the 8 x 8 and the 32 x 8 layers, which are the same in all
    blocks."""
    (plan,) = plans_of(state, [device_id])
    assert plan.missed_ranks is not None
    (ranks,) = np.unique(plan.missed_ranks, axis=0).tolist()
    return tuple(ranks)


def test_a_device_downloads_the_stacks_of_the_rounds_that_it_missed() -> None:
    """A stack of rank 4 is as large as the 8 x 8 matrix, which is then sent in its place: rank 8.
    Of a 32 x 8 layer that comes at rank 7."""
    states = after_rounds([[2], [2, 3], [2], [3], [2, 3]])  # ranks 1, 2, 1, 1, 2
    missed = [[ranks_missed(state, k) for k in range(4)] for state in states]
    assert missed == [
        [(0, 0), (0, 0), (0, 0), (0, 0)],
        [(1, 1), (1, 1), (1, 1), (1, 1)],  # 2 had the base of version 0
        [(3, 3), (3, 3), (2, 2), (2, 2)],  # 2 and 3 had that of version 1
        [(8, 4), (8, 4), (1, 1), (3, 3)],  # 2 had that of version 2
        [(8, 5), (8, 5), (2, 2), (1, 1)],
        [(8, 8), (8, 8), (2, 2), (2, 2)],
    ]


def test_a_device_that_never_reported_is_charged_for_all_of_it_again() -> None:
    states = after_rounds([[2], [3], [3]])
    assert ranks_missed(states[3], 0) == ranks_missed(states[3], 1) == (3, 3)
    plans_of(states[3], [0])  # device 0 gets a plan and never sends an update
    after = STRATEGY.aggregate(states[3], updates_of(states[3], [3]))
    assert ranks_missed(after, 0) == (8, 4)


@given(
    st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=1, max_size=6),
    st.integers(0, 2**31),
)
@settings(max_examples=25)
def test_what_comes_off_the_wire_leads_to_the_base_of_now_and_is_what_is_charged(
    cohorts: list[set[int]], seed: int
) -> None:
    states = after_rounds([sorted(c) for c in cohorts], seed)
    now, costs, profile = states[-1], ClosedFormCost(MODEL, 16), device_profile("any")
    for plan in plans_of(now, range(4)):
        broadcast = STRATEGY.broadcast(now, plan)
        message = encode_broadcast(broadcast, plan=plan)
        assert len(message) == costs.cost(plan, profile).download_bytes
        drawn = STRATEGY.broadcast(now, plan).adapter
        received = decode_broadcast(message, MODEL, plan=plan, drawn=drawn)
        had = states[now.memory.bases.held.get(plan.device_id, 0)]
        for key in now.adapter.factors:
            product = received.missed.get(key)
            if isinstance(product, np.ndarray):
                got = multiplied_out(product)  # from the pretrained weights on
            elif product is not None:
                got = base_of(had, key) + multiplied_out(product)
            else:
                assert had.version == now.version or not now.adapter.merged.products
                got = base_of(had, key)
            wanted = base_of(now, key)
            np.testing.assert_allclose(got, wanted, atol=1e-5 * float(np.abs(wanted).max()))


def test_a_download_never_exceeds_the_matrices() -> None:
    states = after_rounds([[0, 1, 2, 3]] * 5)
    costs, profile = ClosedFormCost(MODEL, 16), device_profile("any")
    head = HEADER.size + 4 * MODEL.head_parameters
    sizes = [
        [costs.cost(plan, profile).download_bytes for plan in plans_of(state, range(4))]
        for state in states
    ]
    matrices = MODEL.num_blocks * sum(outputs * inputs for outputs, inputs in SIDES.values())
    assert sizes == [[head] * 4, *[[head + 4 * matrices] * 4] * 5]


def test_the_server_keeps_no_more_stacks_than_a_matrix_is_large() -> None:
    """Seven rounds of rank 1 are as large as either matrix."""
    states = after_rounds([[2]] * 9)
    assert [len(state.memory.bases.stacks) for state in states] == [0, 1, 2, 3, 4, 5, 6, 6, 6, 6]


def test_a_late_update_fades_as_a_product_and_leaves_the_base_it_started_from() -> None:
    states = after_rounds([[0], [1], [3]])
    (update,) = updates_of(states[1], [2])
    current = Broadcast(3, states[3].adapter)
    faded = with_change_added(update, current, 0.25)
    after = STRATEGY.aggregate(states[3], [faded])
    for key, (a, b) in update.adapter.factors.items():
        moved = base_of(after, key) - base_of(states[3], key)
        wanted = 0.25 * b[:, :1].astype(np.float64) @ a[:1]
        # The base is kept in float32, and is of the size of 10.
        np.testing.assert_allclose(moved, wanted, atol=1e-5)
    assert after.memory.bases.held[2] == 1
    for name, values in after.adapter.head.items():
        delta = update.adapter.head[name] - update.broadcast.adapter.head[name]
        wanted_head = states[3].adapter.head[name] + 0.25 * delta
        np.testing.assert_allclose(values, wanted_head, rtol=1e-5, atol=1e-6)


def test_terms_and_costs_are_those_of_the_rank(fleet: StaticFleet) -> None:
    state = STRATEGY.init(fleet.model.initial_adapter(4, 16.0, np.random.default_rng(0)))
    for plan in STRATEGY.plan(state, fleet, fleet.device_ids, np.random.default_rng(0)):
        assert plan.terms.use == "fresh"
        assert (plan.terms.held == plan.terms.uploaded).all()
        assert fleet.cost(plan).memory.total <= fleet.memory_budget_bytes(plan.device_id)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"ranks": (4, 2)}, r"ranks must be rising numbers of at least 1, got \(4, 2\)"),
        ({"rank_rule": "luck"}, "rank_rule must be one of memory, speed, groups, got 'luck'"),
    ],
)
def test_a_wrong_option_is_named_with_what_must_hold(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FLoRA(**given)
