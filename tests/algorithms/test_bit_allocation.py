"""Bits in memory and on the wire are compared with cases worked by hand, literal rules, and every
choice."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.planning.bit_allocation import (
    SCALE_BITS,
    UploadSteps,
    adaptive_bits,
    greedy_formats,
    threshold_formats,
    uniform_bits,
)

LEVELS = (2, 4, 8, 16)
WEIGHT_BITS = {"fp16": 16, "int8": 8, "int4": 4, "nf4": 4}
SPEC_SCORES = np.array([0.30, 0.22, 0.15, 0.12, 0.09, 0.06, 0.04, 0.02])

saliences = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12).map(np.array)


def allocate(
    score: np.ndarray,
    sizes: Sequence[int],
    budget: int,
    *,
    scale_bits: int,
    levels: Sequence[int] = LEVELS,
) -> list[int]:
    """Return the bits of terms that are all sent."""
    steps = UploadSteps.by_worth(score, np.array(sizes), levels=levels, scale_bits=scale_bits)
    bits = adaptive_bits(steps, np.ones((1, len(score)), dtype=bool), budget_bits=[budget])
    return [int(q) for q in bits[0]]


def cost(bits: Sequence[int], sizes: Sequence[int], scale_bits: int) -> int:
    return sum(q * size + scale_bits * (q > 0) for q, size in zip(bits, sizes, strict=True))


def worth(bits: Sequence[int], score: np.ndarray) -> float:
    return float(sum(s * (1 - 4.0**-q) for q, s in zip(bits, score, strict=True)))


def best_worth(score: np.ndarray, sizes: Sequence[int], budget: int, scale_bits: int) -> float:
    """Return the best worth, found by trying everything."""
    ladder = np.array([0, *LEVELS])
    choices = ladder[np.indices((len(ladder),) * len(score)).reshape(len(score), -1)]  # (n, 5^n)
    costs = np.array(sizes) @ choices + scale_bits * (choices > 0).sum(axis=0)
    return float((score @ (1 - 4.0**-choices))[costs <= budget].max())


def literal_greedy(
    score: np.ndarray, sizes: Sequence[int], budget: int, scale_bits: int
) -> tuple[list[int], float]:
    """Apply the rule as written; return also the worth of the first step passed over, or 0."""
    ladder = (0, *LEVELS)
    at, left, passed = [0] * len(score), budget, None
    while True:
        offers = []
        for k, s in enumerate(score):
            if at[k] < len(LEVELS):
                low, high = ladder[at[k]], ladder[at[k] + 1]
                extra = (high - low) * sizes[k] + scale_bits * (low == 0)
                gain = s * (4.0**-low - 4.0**-high)
                offers.append((-gain / extra, at[k], k, extra, gain))
        fitting = [offer for offer in offers if offer[3] <= left]
        if offers and passed is None and min(offers) not in fitting:
            passed = min(offers)[4]
        if not fitting:
            return [ladder[level] for level in at], passed or 0.0
        _, _, k, extra, _ = min(fitting)
        at[k] += 1
        left -= extra


def test_blocks_step_down_one_by_one_from_the_least_salient() -> None:
    sequence = greedy_formats(np.array([3.0, 1.0, 2.0]), "int4")
    assert sequence == [
        ("fp16", "fp16", "fp16"),
        ("fp16", "int8", "fp16"),
        ("fp16", "int8", "int8"),
        ("int8", "int8", "int8"),
        ("int8", "int4", "int8"),
        ("int8", "int4", "int4"),
        ("int4", "int4", "int4"),
    ]


@pytest.mark.parametrize(
    ("salience", "second"), [(500.0, ("int4", "fp16")), (450.0, ("int8", "int8"))]
)
def test_a_block_478_times_less_salient_goes_to_4_bits_first(
    salience: float, second: tuple[str, str]
) -> None:
    # (2^-8 - 2^-16) / (8.5 - 4.5) over (2^-16 - 2^-32) / (16 - 8.5) is 478.1.
    assert greedy_formats(np.array([1.0, salience]), "int4")[2] == second


def test_equally_salient_blocks_all_go_to_int8_before_any_goes_below() -> None:
    for salience in (0.0, 1.0, -1e-9):
        sequence = greedy_formats(np.full(4, salience), "nf4")
        assert sequence[4] == ("int8",) * 4
        assert sequence[-1] == ("nf4",) * 4


@given(saliences)
def test_no_block_has_fewer_bits_than_a_less_salient_one(salience: np.ndarray) -> None:
    for formats in greedy_formats(salience, "int4"):
        bits = [WEIGHT_BITS[name] for name in formats]
        in_order = [bits[block] for block in np.argsort(salience, kind="stable")]
        assert in_order == sorted(in_order)


@given(saliences)
def test_each_step_packs_one_block_one_step_further(salience: np.ndarray) -> None:
    sequence = greedy_formats(salience, "int4")
    assert len(sequence) == 2 * len(salience) + 1
    step_down = {"fp16": "int8", "int8": "int4"}
    for before, after in pairwise(sequence):
        changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
        assert [step_down[a] for a, _ in changed] == [b for _, b in changed]
        assert len(changed) == 1


def test_threshold_packs_the_least_salient_share_to_4_bits() -> None:
    salience = np.array([5.0, 1.0, 4.0, 2.0])
    assert threshold_formats(salience, 0.5, four_bit="nf4") == ("int8", "nf4", "int8", "nf4")
    assert threshold_formats(salience, 0.0, four_bit="nf4") == ("int8",) * 4
    assert threshold_formats(salience, 1.0, four_bit="int4") == ("int4",) * 4


@pytest.mark.parametrize(
    ("budget", "bits"),
    [
        (8, [2, 2, 2, 2, 0, 0, 0, 0]),
        (16, [2] * 8),
        (24, [4, 4, 4, 4, 2, 2, 2, 2]),
        (32, [4] * 8),
        (64, [8] * 8),
    ],
)
def test_eight_terms_of_unit_cost_get_the_bits_worked_out_by_hand(
    budget: int, bits: list[int]
) -> None:
    assert allocate(SPEC_SCORES, [1] * 8, budget, scale_bits=0) == bits


@pytest.mark.parametrize("budget", [8, 16, 24, 32, 64])
def test_eight_terms_of_unit_cost_are_worth_as_much_as_the_best_of_all_choices(budget: int) -> None:
    bits = allocate(SPEC_SCORES, [1] * 8, budget, scale_bits=0)
    assert worth(bits, SPEC_SCORES) == pytest.approx(
        best_worth(SPEC_SCORES, [1] * 8, budget, 0), rel=1e-12
    )


upload_cases = st.tuples(
    st.lists(st.tuples(st.floats(1e-6, 1.0), st.integers(3, 40)), min_size=1, max_size=4),
    st.integers(-100, 3000),
    st.sampled_from([0, SCALE_BITS]),
)


@given(upload_cases)
def test_adaptive_bits_follow_the_rule_step_by_step(
    case: tuple[list[tuple[float, int]], int, int],
) -> None:
    terms, budget, scale_bits = case
    score, sizes = np.array([s for s, _ in terms]), [size for _, size in terms]
    bits = allocate(score, sizes, budget, scale_bits=scale_bits)
    expected, _ = literal_greedy(score, sizes, budget, scale_bits)
    # Where two offers are worth the same to the last digit, either may come first.
    assert bits == expected or worth(bits, score) == pytest.approx(worth(expected, score))
    assert cost(bits, sizes, scale_bits) <= max(budget, 0)


@given(upload_cases)
def test_adaptive_bits_miss_the_best_by_at_most_the_first_step_passed_over(
    case: tuple[list[tuple[float, int]], int, int],
) -> None:
    terms, budget, scale_bits = case
    score, sizes = np.array([s for s, _ in terms]), [size for _, size in terms]
    got = worth(allocate(score, sizes, budget, scale_bits=scale_bits), score)
    best = best_worth(score, sizes, budget, scale_bits) if budget >= 0 else 0.0
    _, passed = literal_greedy(score, sizes, budget, scale_bits)
    assert best - passed - 1e-12 <= got <= best + 1e-12


def test_equal_scores_get_their_first_bits_before_any_gets_more() -> None:
    assert allocate(np.zeros(4), [10] * 4, 4 * 20, scale_bits=0) == [2, 2, 2, 2]
    assert allocate(np.ones(4), [10] * 4, 4 * 20 + 20, scale_bits=0) == [4, 2, 2, 2]


def test_terms_that_are_not_sent_get_no_bits() -> None:
    steps = UploadSteps.by_worth(
        np.array([[3.0, 2.0], [1.0, 4.0]]), np.full((2, 2), 8), levels=LEVELS
    )
    sent = np.array([[False, True], [True, False]])
    assert adaptive_bits(steps, sent[None], budget_bits=[10**6]).tolist() == [[[0, 16], [16, 0]]]


def test_one_level_discards_the_least_important_terms() -> None:
    full = 16 * 24 + SCALE_BITS
    bits = allocate(np.array([0.1, 0.4, 0.2]), [24] * 3, 3 * full - 1, scale_bits=64, levels=(16,))
    assert bits == [0, 16, 16]


def test_a_step_that_does_not_fit_is_passed_over_for_a_smaller_one() -> None:
    score, sizes = np.array([1.0, 0.9]), [100, 10]
    assert allocate(score, sizes, 199, scale_bits=0) == [0, 16]
    assert allocate(score, sizes, 220, scale_bits=0) == [2, 2]


@pytest.mark.parametrize(("spare", "level"), [(-1, 4), (0, 8), (1, 8)])
def test_uniform_bits_are_the_most_that_all_terms_can_have(spare: int, level: int) -> None:
    sizes = np.array([10, 20, 30, 40])
    sent = np.array([True, False, True, True])
    budget = 8 * 80 + 3 * SCALE_BITS + spare
    bits = uniform_bits(sizes, sent, budget_bits=budget, levels=LEVELS)
    assert bits.tolist() == [level, 0, level, level]


def test_uniform_bits_send_nothing_where_the_lowest_level_does_not_fit() -> None:
    sent = np.ones(2, dtype=bool)
    bits = uniform_bits(np.array([10, 10]), sent, budget_bits=2 * 20 + 127, levels=LEVELS)
    assert bits.tolist() == [0, 0]
