"""FlexLoRA takes the exact mean of B A and cuts it to a rank by an SVD."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.strategies.flexlora import FlexLoRA, leading_factors
from algorithms.strategy import ServerState
from devices.vocabulary.plan import Adapter, ClientUpdate, Factors, ModuleKey
from tests.algorithms.haflq_fleets import device, fleet_of
from tests.algorithms.static_fleet import StaticFleet, random_adapter, trained_update
from traces.arrays import FloatArray


def a_round(
    strategy: FlexLoRA, seed: int = 0, speeds: Sequence[float] = (1e9, 1e9, 1e9 / 2.1)
) -> tuple[ServerState[None], list[ClientUpdate]]:
    """Return the state and the updates of a round with ranks 8, 8 and 2 on layers of 8 x 8 and 32 x
    8."""
    fleet = fleet_of([device(flops_per_s=s) for s in speeds])
    rng = np.random.default_rng(seed)
    state = strategy.init(random_adapter(fleet.model, strategy.rank, rng))
    plans = strategy.plan(state, fleet, fleet.device_ids, rng)
    updates = [
        trained_update(plan, strategy.broadcast(state, plan), rng, num_examples=3 + plan.device_id)
        for plan in plans
    ]
    return state, updates


def dense(adapter: Adapter, key: ModuleKey, num_terms: int | None = None) -> FloatArray:
    """Return the weight update of the first terms in float64."""
    a, b = (factor.astype(np.float64) for factor in adapter.factors[key])
    return adapter.scale * b[:, :num_terms] @ a[:num_terms]


def weighted_sum(updates: Sequence[ClientUpdate], key: ModuleKey) -> FloatArray:
    total = sum(u.num_examples for u in updates)
    parts = [
        u.num_examples / total * dense(u.adapter, key, int(u.plan.terms.held[0, 0].sum()))
        for u in updates
    ]
    return np.sum(parts, axis=0)


def test_at_full_rank_the_merged_update_is_the_weighted_sum_of_b_a() -> None:
    strategy = FlexLoRA(rank=8)  # the smaller side of every layer is 8
    state, updates = a_round(strategy)
    merged = strategy.aggregate(state, updates).adapter
    for key in merged.factors:
        wanted = weighted_sum(updates, key)
        assert np.abs(dense(merged, key) - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_below_full_rank_it_is_the_best_approximation_of_that_rank(rank: int) -> None:
    """By Eckart-Young, the error is made of the singular values that were cut off. As many of the
    first terms are the best approximation of a smaller rank, which is what a smaller device is
    sent."""
    strategy = FlexLoRA(rank=rank, ranks=(1, 3, 5))
    state, updates = a_round(strategy)
    merged = strategy.aggregate(state, updates).adapter
    for key in merged.factors:
        wanted = weighted_sum(updates, key)
        values = np.linalg.svd(wanted, compute_uv=False)
        for kept in range(1, rank + 1):
            left = np.linalg.norm(wanted - dense(merged, key, kept))
            assert left == pytest.approx(np.linalg.norm(values[kept:]), rel=1e-5, abs=1e-5)


def test_b_carries_the_singular_values_and_a_is_orthonormal_with_positive_largest_elements() -> (
    None
):
    strategy = FlexLoRA()
    state, updates = a_round(strategy)
    merged = strategy.aggregate(state, updates).adapter
    for key, (a, b) in merged.factors.items():
        values = np.linalg.svd(weighted_sum(updates, key), compute_uv=False)[:8]
        np.testing.assert_allclose(merged.scale * np.linalg.norm(b, axis=0), values, rtol=1e-5)
        np.testing.assert_allclose(a @ a.T, np.eye(8), atol=1e-6)
        assert (a[np.arange(8), np.abs(a).argmax(axis=1)] > 0).all()


def test_the_one_scale_of_server_and_devices_falls_out() -> None:
    strategy = FlexLoRA()
    state, updates = a_round(strategy)
    rescaled = [replace(u, adapter=replace(u.adapter, scale=0.125)) for u in updates]
    other = replace(state, adapter=replace(state.adapter, scale=0.125))
    one, two = strategy.aggregate(state, updates), strategy.aggregate(other, rescaled)
    assert (one.adapter.scale, two.adapter.scale) == (state.adapter.scale, 0.125)
    for key, factors in one.adapter.factors.items():
        np.testing.assert_array_equal(factors.a, two.adapter.factors[key].a)
        np.testing.assert_array_equal(factors.b, two.adapter.factors[key].b)


def test_equal_updates_average_to_themselves() -> None:
    """Their products are equal; the factors are other ones."""
    strategy = FlexLoRA()
    state, updates = a_round(strategy, speeds=(1e9, 1e9, 1e9))
    equal = [replace(u, adapter=updates[0].adapter) for u in updates]
    merged = strategy.aggregate(state, equal).adapter
    for key in merged.factors:
        one = dense(updates[0].adapter, key)
        assert np.abs(dense(merged, key) - one).max() <= 1e-5 * np.abs(one).max()


def test_arrival_order_does_not_change_a_bit() -> None:
    strategy = FlexLoRA()
    state, updates = a_round(strategy)
    digests = {
        strategy.aggregate(state, list(order)).adapter.digest for order in permutations(updates)
    }
    assert len(digests) == 1


def random_factors(rank: int, rng: np.random.Generator, *, inputs: int, outputs: int) -> Factors:
    return Factors(
        rng.normal(size=(rank, inputs)).astype(np.float32),
        rng.normal(size=(outputs, rank)).astype(np.float32),
    )


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 7)),
    st.integers(0, 2**32 - 1),
)
def test_any_ranks_on_any_layer_are_summed_exactly_where_there_are_terms_enough(
    ranks: list[int], sizes: tuple[int, int, int], seed: int
) -> None:
    inputs, outputs, extra = sizes
    rng = np.random.default_rng(seed)
    parts = [random_factors(r, rng, inputs=inputs, outputs=outputs) for r in ranks]
    weights = rng.dirichlet(np.ones(len(ranks)))
    full = min(inputs, outputs)
    old = random_factors(full + extra, rng, inputs=inputs, outputs=outputs)
    a, b = leading_factors(parts, weights, old)
    assert a.shape == old.a.shape
    assert b.shape == old.b.shape
    wanted = sum(
        w * f.b.astype(np.float64) @ f.a.astype(np.float64)
        for w, f in zip(weights, parts, strict=True)
    )
    np.testing.assert_allclose(b.astype(np.float64) @ a.astype(np.float64), wanted, atol=1e-5)


def test_terms_without_a_direction_keep_their_a_and_add_nothing() -> None:
    rng = np.random.default_rng(0)
    part, old = (random_factors(r, rng, inputs=5, outputs=7) for r in (2, 4))
    a, b = leading_factors([part], np.ones(1), old)
    np.testing.assert_array_equal(a[2:], old.a[2:])
    assert not b[:, 2:].any()
    np.testing.assert_allclose(b @ a, part.b @ part.a, atol=1e-5)


def test_an_update_that_is_zero_leaves_a_as_it_was() -> None:
    old = random_factors(4, np.random.default_rng(0), inputs=5, outputs=7)
    a, b = leading_factors([Factors(old.a, np.zeros_like(old.b))], np.ones(1), old)
    np.testing.assert_array_equal(a, old.a)
    assert not b.any()


def test_the_dense_product_is_never_formed() -> None:
    width = 4000
    rng = np.random.default_rng(0)
    parts = [random_factors(2, rng, inputs=width, outputs=width) for _ in range(3)]
    tracemalloc.start()
    leading_factors(parts, np.full(3, 1 / 3), parts[0])
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 8 * width * width / 10


def test_a_smaller_device_is_sent_the_top_directions() -> None:
    strategy = FlexLoRA()
    fleet: StaticFleet = fleet_of([device(flops_per_s=s) for s in (1e9, 1e9, 1e9 / 2.1)])
    state = strategy.init(random_adapter(fleet.model, 8, np.random.default_rng(0)))
    plan = strategy.plan(state, fleet, [2], np.random.default_rng(0))[0]
    assert (plan.terms.held == (np.arange(8) < 2)).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"alpha": -1.0}, "alpha must be above 0 and finite, got -1.0"),
        ({"ranks": (0, 2)}, r"ranks must be rising numbers of at least 1, got \(0, 2\)"),
        ({"rank_rule": "x"}, "rank_rule must be one of memory, speed, groups, got 'x'"),
    ],
)
def test_a_wrong_option_is_named_with_what_must_hold(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlexLoRA(**given)
