"""Smoothed sensitivity by hand, and the terms that are chosen by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.planning.importance import Sensitivity, choose_terms, magnitudes
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


def one_module(a: npt.ArrayLike, b: npt.ArrayLike) -> Adapter:
    """Return an adapter of one block and one module."""
    factors = Factors(np.array(a, np.float32), np.array(b, np.float32))
    return Adapter({KEY: factors}, {}, scale=1.0)


def update(
    start: Adapter, end: Adapter, sent: Sequence[bool], num_examples: int = 1
) -> ClientUpdate:
    trained = np.array(sent)[None, None, :]
    terms = TermGrid(np.ones_like(trained), trained, np.where(trained, 8, 0).astype(np.uint8))
    plan = TrainingPlan(0, terms, ("fp32",), (32,), local_steps=1, batch_size=1)
    return ClientUpdate(plan, Broadcast(0, start), end, num_examples, 0.0)


# Two terms, three inputs, two outputs. I = |start * (start - end)|.
START = one_module([[1, 2, 0], [1, 1, 1]], [[2, 1], [0, 1]])
END = one_module([[0, 1, 5], [1, 1, 1]], [[1, 1], [4, 1]])
I_A, I_B = np.array([1.0, 2.0, 0.0]), np.array([2.0, 0.0])  # of term 0; term 1 does not move


def test_nothing_is_known_of_any_term_at_first() -> None:
    unknown = Sensitivity.unknown(START)
    assert unknown.score.tolist() == [[[0.0, 0.0]]]
    assert unknown.is_measured.tolist() == [[[False, False]]]


def test_first_score_is_the_product_of_both_averages_by_hand() -> None:
    seen = Sensitivity.unknown(START).observe(
        [update(START, END, [True, True])], beta1=0.5, beta2=0.75
    )
    # Ibar = I / 2, Ubar = |I - I / 2| / 4 = I / 8, s = I^2 / 16.
    expected = (1 + 4 + 0) / 16 / 3 + (4 + 0) / 16 / 2
    assert seen.score[0, 0] == pytest.approx([expected, 0.0])
    assert seen.is_measured.all()


def test_second_score_smooths_the_first_by_hand() -> None:
    sent = [update(START, END, [True, True])]
    once = Sensitivity.unknown(START).observe(sent, beta1=0.5, beta2=0.75)
    twice = once.observe(sent, beta1=0.5, beta2=0.75)
    # Ibar = I/4 + I/2 = 3I/4, Ubar = (3/4)(I/8) + (1/4)(I/4) = 5I/32, s = 15 I^2 / 128.
    expected = 15 / 128 * ((I_A**2).mean() + (I_B**2).mean())
    assert twice.score[0, 0, 0] == pytest.approx(expected)


def test_devices_count_by_their_examples_among_the_senders_of_a_term() -> None:
    still = START
    both = [update(START, END, [True, True], 1), update(START, still, [True, True], 3)]
    seen = Sensitivity.unknown(START).observe(both, beta1=0.5, beta2=0.75)
    alone = [update(START, END, [True, True], 1), update(START, still, [False, True], 3)]
    seen_alone = Sensitivity.unknown(START).observe(alone, beta1=0.5, beta2=0.75)
    # I is a quarter as large where the still device counts three times; s goes with its square.
    assert seen_alone.score[0, 0, 0] == pytest.approx(16 * seen.score[0, 0, 0])


def test_a_term_that_nobody_sent_keeps_its_score() -> None:
    once = Sensitivity.unknown(START).observe(
        [update(START, END, [True, False])], beta1=0.5, beta2=0.5
    )
    twice = once.observe([update(START, END, [False, True])], beta1=0.5, beta2=0.5)
    assert once.is_measured.tolist() == [[[True, False]]]
    assert twice.is_measured.all()
    assert twice.score[0, 0, 0] == once.score[0, 0, 0] > 0


def test_difference_is_taken_from_what_the_device_started_from() -> None:
    later = one_module([[9, 9, 9], [9, 9, 9]], [[9, 9], [9, 9]])
    memory = Sensitivity.unknown(later)
    seen = memory.observe([update(START, END, [True, True])], beta1=0.5, beta2=0.75)
    expected = ((I_A**2).mean() + (I_B**2).mean()) / 16
    assert seen.score[0, 0, 0] == pytest.approx(expected)


def test_learning_rate_changes_no_order() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(6, 5)), rng.normal(size=(3, 6))
    step_a, step_b = rng.normal(size=(6, 5)), rng.normal(size=(3, 6))
    start = one_module(a, b)
    scores = []
    for rate in (1.0, 1e-3):
        end = one_module(a - rate * step_a, b - rate * step_b)
        seen = Sensitivity.unknown(start).observe(
            [update(start, end, [True] * 6)], beta1=0.85, beta2=0.85
        )
        scores.append(seen.score[0, 0])
    # The differences are rounded to float32, 1e-3 of which keeps three digits fewer.
    assert scores[1] == pytest.approx(1e-6 * scores[0], rel=1e-2)
    assert np.argsort(scores[0]).tolist() == np.argsort(scores[1]).tolist()


def test_magnitude_is_the_mean_over_the_row_plus_the_mean_over_the_column() -> None:
    assert magnitudes(START)[0, 0] == pytest.approx([3 / 3 + 2 / 2, 3 / 3 + 2 / 2])


def test_scores_stand_at_their_block_and_module() -> None:
    def filled(value: float, in_features: int) -> Factors:
        a = np.full((2, in_features), value, np.float32)
        return Factors(a, np.zeros((7, 2), np.float32))

    widths: Mapping[str, int] = {"value": 3, "query": 5}
    factors = {
        ModuleKey(block, module): filled(10 * block + place, widths[module])
        for block in range(3)
        for place, module in enumerate(widths)
    }
    grid = magnitudes(Adapter(factors, {}, scale=1.0))
    assert grid[:, :, 0].tolist() == [[0, 1], [10, 11], [20, 21]]


@given(st.integers(1, 6), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_every_module_gets_exactly_its_number_of_terms(
    num_terms: int, explore_share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    score = rng.random((3, 2, 6))
    (chosen,) = choose_terms(score, [num_terms], explore_share=explore_share, rng=rng)
    assert (chosen.sum(axis=2) == num_terms).all()


def test_without_exploration_the_top_terms_are_chosen() -> None:
    score = np.array([[[0.1, 0.9, 0.5, 0.7]], [[4.0, 3.0, 2.0, 1.0]]])
    (chosen,) = choose_terms(score, [2], explore_share=0.0, rng=np.random.default_rng(1))
    assert chosen.tolist() == [[[False, True, False, True]], [[True, True, False, False]]]


def test_exploration_replaces_the_lowest_of_the_top_terms_as_often_as_asked() -> None:
    score = np.broadcast_to(np.arange(8.0), (100, 50, 8))
    (chosen,) = choose_terms(score, [2], explore_share=0.1, rng=np.random.default_rng(2))
    drawn = chosen[..., :6].sum()
    # Of 10,000 slots each is drawn with p = 0.1. One drawn slot takes one of the 7 terms below the
    # first, 6 of which are not the second; two take 2 of all 8, 1.5 of them below the top two.
    expected = 5000 * (2 * 0.1 * 0.9 * 6 / 7 + 0.1**2 * 1.5)
    assert abs(drawn - expected) < 5 * np.sqrt(expected)  # five deviations of the binomial


def test_equal_scores_are_ordered_at_random() -> None:
    (chosen,) = choose_terms(
        np.zeros((200, 50, 4)), [1], explore_share=0.0, rng=np.random.default_rng(3)
    )
    counts = chosen.sum(axis=(0, 1))
    assert np.abs(counts - 2500).max() < 5 * np.sqrt(10_000 * 0.25 * 0.75)
