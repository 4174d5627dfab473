"""Clipping and trimming, on numbers that can be worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.merging.robust import Robustness, clipped, update_norm, winsorized
from devices.vocabulary.plan import (
    Adapter,
    Broadcast,
    ClientUpdate,
    Factors,
    ModuleKey,
    TermGrid,
    TrainingPlan,
)

KEY = ModuleKey(0, "query")


def adapter(a: list[float], b: list[float], head: list[float]) -> Adapter:
    """Return an adapter of one layer of two terms, with one number in and one out."""
    factors = Factors(np.array(a, np.float32)[:, None], np.array(b, np.float32)[None, :])
    return Adapter({KEY: factors}, {"bias": np.array(head, np.float32)}, 1.0)


START = adapter([1.0, 2.0], [0.0, 0.0], [5.0])


def update(
    device_id: int,
    a: list[float],
    b: list[float],
    head: list[float],
    sent: tuple[int, int] = (1, 1),
) -> ClientUpdate:
    trained = np.array(sent, bool)[None, None]
    grid = TermGrid(np.ones_like(trained), trained, np.where(trained, 32, 0).astype(np.uint8))
    plan = TrainingPlan(device_id, grid, ("fp32",), (32,), local_steps=1, batch_size=1)
    return ClientUpdate(plan, Broadcast(0, START), adapter(a, b, head), 1, 0.5)


def numbers(one: ClientUpdate) -> list[float]:
    a, b = one.adapter.factors[KEY]
    return [*a.ravel().tolist(), *b.ravel().tolist(), *one.adapter.head["bias"].tolist()]


def test_norm_is_over_factors_and_head_together() -> None:
    assert update_norm(update(0, [2.0, 2.0], [0.0, 2.0], [7.0])) == 3.0  # 1, 2 and 2


def test_clipping_scales_the_change_and_keeps_what_is_within() -> None:
    large = update(0, [2.0, 2.0], [0.0, 2.0], [7.0])
    assert numbers(clipped(large, 1.5)) == [1.5, 2.0, 0.0, 1.0, 6.0]
    assert update_norm(clipped(large, 1.5)) == pytest.approx(1.5)
    assert clipped(large, 3.0) is large


def test_trimming_moves_the_largest_and_smallest_to_the_edge_of_the_rest() -> None:
    steps = [-9.0, 1.0, 2.0, 3.0, 70.0]
    updates = [update(k, [1 + s, 2.0], [s, 0.0], [5 - s]) for k, s in enumerate(steps)]
    found = [numbers(one) for one in winsorized(updates, 0.2)]
    kept = [1.0, 1.0, 2.0, 3.0, 3.0]
    # Of the head the smallest step is that of device 4.
    assert found == [[1 + s, 2.0, s, 0.0, 5 - s] for s in kept]


def test_terms_are_trimmed_among_those_that_sent_them() -> None:
    updates = [
        update(0, [1.0, 3.0], [0.0, 1.0], [5.0], sent=(0, 1)),
        update(1, [-8.0, 4.0], [-9.0, 2.0], [5.0]),
        update(2, [3.0, 5.0], [2.0, 3.0], [5.0]),
        update(3, [4.0, 99.0], [3.0, 99.0], [5.0]),
    ]
    found = [numbers(one)[:4] for one in winsorized(updates, 0.34)]
    # Term 0 was sent by three, so one goes at either end: all stand at the middle. Term 1 by four.
    assert found == [
        [1.0, 4.0, 0.0, 2.0],
        [3.0, 4.0, 2.0, 2.0],
        [3.0, 5.0, 2.0, 3.0],
        [3.0, 5.0, 2.0, 3.0],
    ]


def test_few_updates_are_not_trimmed() -> None:
    updates = [update(k, [9.0 * k, 2.0], [0.0, 0.0], [5.0]) for k in range(4)]
    found = winsorized(updates, 0.2)
    assert [numbers(one) for one in found] == [numbers(one) for one in updates]


def test_a_tenth_of_a_share_counts_in_full() -> None:
    """0.29 * 100 is 28.999... in binary."""
    updates = [update(k, [1.0 + k, 2.0], [0.0, 0.0], [5.0]) for k in range(100)]
    lowest = min(numbers(one)[0] for one in winsorized(updates, 0.29))
    assert lowest == 30.0


def test_nothing_is_touched_unless_told() -> None:
    updates = [update(k, [9.0**k, 2.0], [0.0, 0.0], [5.0]) for k in range(3)]
    assert Robustness().tame(updates) == updates


def test_clipping_comes_before_trimming() -> None:
    updates = [update(k, [1.0 + s, 2.0], [0.0, 0.0], [5.0]) for k, s in enumerate((1.0, 4.0, 9.0))]
    found = Robustness(clip_norm=2.0, trim_share=0.34).tame(updates)
    assert [numbers(one)[0] for one in found] == [3.0, 3.0, 3.0]


@given(
    honest=st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=12),
    attacks=st.lists(st.floats(-1e6, 1e6, width=32), max_size=3),
    share=st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.49]),
)
def test_no_value_leaves_the_honest_range_while_attackers_are_at_most_the_share(
    honest: list[float], attacks: list[float], share: float
) -> None:
    values = honest + attacks
    if len(attacks) > math.floor(share * len(values) + 1e-9):
        return
    updates = [update(k, [1.0, 2.0], [value, 0.0], [5.0]) for k, value in enumerate(values)]
    found = [numbers(one)[2] for one in winsorized(updates, share)]
    assert min(honest) <= min(found) <= max(found) <= max(honest)


@given(st.permutations(range(5)))
def test_the_order_of_updates_does_not_matter(order: list[int]) -> None:
    updates = [update(k, [1.0 + k * k, 2.0], [float(k), 0.0], [5.0]) for k in range(5)]
    straight = [numbers(one) for one in winsorized(updates, 0.2)]
    shuffled = winsorized([updates[k] for k in order], 0.2)
    assert [numbers(one) for one in shuffled] == [straight[k] for k in order]


def test_an_update_far_beyond_fp32_has_an_infinite_norm() -> None:
    huge = replace(
        update(0, [1.0, 2.0], [0.0, 0.0], [5.0]), adapter=adapter([1, 2], [0, 0], [math.inf])
    )
    assert update_norm(huge) == math.inf
