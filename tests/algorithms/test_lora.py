from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.merging.lora import example_weights, holder_weights, mean_adapter, squared_change
from devices.vocabulary.plan import (
    Adapter,
    Broadcast,
    ClientUpdate,
    Factors,
    ModuleKey,
    TermGrid,
    TrainingPlan,
)
from tests.algorithms.static_fleet import bert, random_adapter, trained_update

MODEL = bert(num_blocks=3, hidden=4)


def plan_on(device_id: int, terms: TermGrid) -> TrainingPlan:
    blocks = terms.held.shape[0]
    return TrainingPlan(device_id, terms, ("fp32",) * blocks, (32,) * blocks, 1, 1)


def updates_of_depths(
    start: Adapter, depths: list[int], examples: list[int], seed: int = 0
) -> list[ClientUpdate]:
    shape = (MODEL.num_blocks, len(start.modules), start.rank)
    rng = np.random.default_rng(seed)
    return [
        trained_update(
            plan_on(device_id, TermGrid.top_blocks(shape, depth)),
            Broadcast(0, start),
            rng,
            num_examples=n,
        )
        for device_id, (depth, n) in enumerate(zip(depths, examples, strict=True))
    ]


def merged(start: Adapter, updates: list[ClientUpdate]) -> Adapter:
    return mean_adapter(start, updates, holder_weights(updates))


def test_terms_are_averaged_over_their_senders_only() -> None:
    """Two devices have 1 and 3 examples; both send term 1, and the first alone sends term 0."""
    key = ModuleKey(0, "query")
    old = Factors(np.full((3, 2), 9, np.float32), np.full((1, 3), 9, np.float32))
    start = Adapter({key: old}, {"bias": np.array([0.0], np.float32)}, scale=1.0)
    sent = {1: [True, True, False], 2: [False, True, False]}
    rows = {1: [[1, 2], [3, 4], [9, 9]], 2: [[9, 9], [7, 8], [9, 9]]}
    updates = []
    for device_id, examples in ((1, 1), (2, 3)):
        trained = np.array(sent[device_id])[None, None, :]
        bits = np.where(trained, 32, 0).astype(np.uint8)
        terms = TermGrid(np.ones_like(trained), trained, bits)
        a = np.array(rows[device_id], np.float32)
        head = {"bias": np.array([4.0 * device_id], np.float32)}
        adapter = Adapter({key: Factors(a, a[:, :1].T.copy())}, head, scale=1.0)
        plan = plan_on(device_id, terms)
        updates.append(ClientUpdate(plan, Broadcast(0, start), adapter, examples, 0.0))
    result = merged(start, updates)
    assert result.factors[key].a.tolist() == [[1, 2], [6, 7], [9, 9]]
    assert result.factors[key].b.tolist() == [[1, 6, 9]]
    assert result.head["bias"].tolist() == [7.0]
    assert result.scale == 1.0


def test_zero_padding_divides_by_everybody() -> None:
    """The same weights with missing terms counted as zero, as callers of mean_adapter may ask."""
    start = random_adapter(MODEL, 2, np.random.default_rng(0))
    updates = updates_of_depths(start, depths=[3, 1], examples=[1, 3])
    sent = np.stack([u.plan.terms.uploaded for u in updates])
    result = mean_adapter(start, updates, sent * example_weights(updates)[:, None, None, None])
    bottom = ModuleKey(0, "query")
    np.testing.assert_allclose(
        result.factors[bottom].a, updates[0].adapter.factors[bottom].a / 4, rtol=1e-6
    )


def test_blocks_that_nobody_trained_keep_their_value() -> None:
    start = random_adapter(MODEL, 2, np.random.default_rng(0))
    result = merged(start, updates_of_depths(start, depths=[1, 2], examples=[5, 7]))
    for module in start.modules:
        key = ModuleKey(0, module)
        assert np.array_equal(result.factors[key].a, start.factors[key].a)
        assert np.array_equal(result.factors[key].b, start.factors[key].b)


@given(
    examples=st.lists(st.integers(1, 1000), min_size=1, max_size=6), seed=st.integers(0, 2**32 - 1)
)
def test_equal_updates_average_to_themselves(examples: list[int], seed: int) -> None:
    start = random_adapter(MODEL, 2, np.random.default_rng(seed))
    update = updates_of_depths(start, [3], [1], seed)[0]
    updates = [
        ClientUpdate(update.plan.on(k), update.broadcast, update.adapter, n, 0.0)
        for k, n in enumerate(examples)
    ]
    assert merged(start, updates).digest == update.adapter.digest


@given(
    depths=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    examples=st.lists(st.integers(1, 1000), min_size=5, max_size=5),
)
def test_weights_of_a_term_sum_to_one_if_somebody_sent_it(
    depths: list[int], examples: list[int]
) -> None:
    start = random_adapter(MODEL, 2, np.random.default_rng(0))
    updates = updates_of_depths(start, depths, examples[: len(depths)])
    total = holder_weights(updates).sum(axis=0)
    is_sent = np.arange(3)[:, None, None] >= 3 - max(depths)
    np.testing.assert_allclose(total, np.broadcast_to(is_sent, total.shape), atol=1e-15)


def test_arrival_order_does_not_change_a_bit() -> None:
    start = random_adapter(MODEL, 3, np.random.default_rng(0))
    updates = updates_of_depths(start, depths=[3, 1, 2, 3], examples=[7, 11, 13, 17])
    digests = {merged(start, list(order)).digest for order in permutations(updates)}
    assert len(digests) == 1


def test_squared_change_sums_both_factors_of_every_module_of_a_block() -> None:
    start = random_adapter(MODEL, 2, np.random.default_rng(0))
    key = ModuleKey(1, "value")
    a, b = start.factors[key]
    moved = {**start.factors, key: Factors(a + np.float32(3), b - np.float32(1))}
    change = squared_change(start, Adapter(moved, start.head, start.scale), num_blocks=3)
    # a is (2, 4) and b is (4, 2): 8 * 9 + 8 * 1, in float32
    assert change == pytest.approx([0, 80, 0], rel=1e-5)
