import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from algorithms.planning.depth_search import (
    DepthProblem,
    at_least,
    climb,
    cover,
    deepest_common,
    deepest_within,
    draw,
    near,
    pace_of_slowest,
    sweep,
    undominated,
)
from traces.arrays import FloatArray, IntArray

INF = math.inf
WAIT_WEIGHTS = (0.0, 0.5, 1.0, 2.0)
POSITIVE = st.floats(0.01, 10.0)


@st.composite
def problems(draw: st.DrawFn, *, rising: bool) -> DepthProblem:
    """Draw up to 4 devices and 4 depths, some of them out of reach; depth 1 never is."""
    devices, blocks = draw(st.integers(1, 4)), draw(st.integers(1, 4))

    def table(cells: st.SearchStrategy[float]) -> FloatArray:
        rows = st.lists(cells, min_size=blocks, max_size=blocks)
        return np.array(draw(st.lists(rows, min_size=devices, max_size=devices)))

    round_s = table(POSITIVE)
    if rising:
        round_s = round_s.cumsum(axis=1)
        held = np.array(draw(st.lists(st.integers(1, blocks), min_size=devices, max_size=devices)))
        round_s[np.arange(1, blocks + 1) > held[:, None]] = INF
    else:
        is_held = table(st.booleans()) > 0
        is_held[:, 0] = True
        round_s[~is_held] = INF
    gains = np.array(draw(st.lists(POSITIVE, min_size=blocks, max_size=blocks))).cumsum()
    examples = np.array(draw(st.lists(st.integers(1, 9), min_size=devices, max_size=devices)))
    wait_weight = draw(st.sampled_from(WAIT_WEIGHTS))
    return DepthProblem(round_s, gains, examples / examples.sum(), wait_weight)


def feasible_choices(problem: DepthProblem) -> list[IntArray]:
    per_device = [np.flatnonzero(np.isfinite(row)) + 1 for row in problem.round_s]
    return [np.array(choice) for choice in product(*per_device)]


@given(problems(rising=True))
def test_sweep_equals_exhaustive_search(problem: DepthProblem) -> None:
    best = max(problem.score(choice) for choice in feasible_choices(problem))
    assert problem.score(sweep(problem)) == pytest.approx(best, rel=1e-8)


@given(problems(rising=False))
@example(
    DepthProblem(
        np.array([[3.0, INF, 1.0], [3.0, INF, 4.0]]), np.arange(1.0, 4), np.full(2, 0.5), 0.0
    )
)
def test_sweep_is_the_best_of_all_round_times_whatever_the_table(problem: DepthProblem) -> None:
    times = problem.round_s[np.isfinite(problem.round_s)]
    taus = sorted({t for t in times if t >= pace_of_slowest(problem.round_s)})
    best = max(problem.score(deepest_within(problem.round_s, tau)) for tau in taus)
    assert problem.score(sweep(problem)) == pytest.approx(best, rel=1e-8)


def test_sweep_takes_the_smaller_time_of_two_equal_scores() -> None:
    """Depth 2 gains twice as much in twice the time."""
    problem = DepthProblem(np.array([[1.5, 3.0]]), np.array([1.0, 2.0]), np.ones(1), 1.0)
    assert sweep(problem).tolist() == [1]


def test_score_weighs_gain_against_round_and_waiting_time() -> None:
    """The score is worked out by hand.

    Gains are 0.25 * 1 + 0.75 * 3, the round is 6 s, mean waiting (6 - 2 + 0) / 2 s.
    """
    problem = DepthProblem(
        np.array([[2.0, INF], [4.0, 6.0]]), np.array([1.0, 3.0]), np.array([0.25, 0.75]), 0.5
    )
    assert problem.score(np.array([1, 2])) == pytest.approx(2.5 / (6 + 0.5 * 2))


@given(problems(rising=True))
def test_climb_is_feasible_and_no_worse_than_everybody_at_depth_one(problem: DepthProblem) -> None:
    depths = climb(problem)
    assert np.isfinite(problem.round_s[np.arange(len(depths)), depths - 1]).all()
    assert problem.score(depths) >= problem.score(np.ones(len(depths), dtype=np.int64))


def test_climb_deepens_the_device_that_pays_most_first() -> None:
    """The second device may go deeper within the first's time, which only lowers the waiting.

    Then the first would add 1/2 of gain in 8 s more: 1.5 / 2 at the start of that step beats
    2 / (10 + 4), so the step is not kept.
    """
    problem = DepthProblem(
        np.array([[2.0, 10.0], [1.0, 2.0]]), np.array([1.0, 2.0]), np.array([0.5, 0.5]), 1.0
    )
    assert climb(problem).tolist() == [1, 2]


def test_climb_skips_depths_that_a_device_cannot_hold() -> None:
    problem = DepthProblem(np.array([[1.0, INF, 1.1]]), np.array([1.0, 2, 3]), np.ones(1), 1.0)
    assert climb(problem).tolist() == [3]


def test_depth_that_takes_no_less_than_a_greater_one_is_dominated() -> None:
    table = np.array([[3.0, 2.0, 2.0, 4.0], [1.0, INF, 2.0, INF]])
    assert undominated(table).tolist() == [[INF, INF, 2.0, 4.0], [1.0, INF, 2.0, INF]]


def test_deepest_within_a_limit() -> None:
    table = np.array([[1.0, 2.0, 3.0], [2.5, INF, INF]])
    assert deepest_within(table, 2.0).tolist() == [2, 0]
    assert deepest_within(table, 2.5).tolist() == [2, 1]


def test_common_depth_is_the_least_of_the_greatest() -> None:
    table = np.array([[1.0, 2.0, 3.0], [2.5, 3.0, INF]])
    assert deepest_common(table).tolist() == [2, 2]
    assert deepest_common(np.array([[1.0, INF], [INF, 1.0]])).tolist() == [0, 0]


def test_draw_takes_every_feasible_depth_and_no_other() -> None:
    table, rng = np.array([[1.0, INF, 3.0, 4.0]]), np.random.default_rng(0)
    # Each of three depths is missed by 60 draws with probability (2/3)^60 = 3e-11.
    assert {int(draw(table, rng)[0]) for _ in range(60)} == {1, 3, 4}


COVERED = DepthProblem(
    round_s=np.array([[1.0, 4.0, 9.0], [2.0, 3.0, INF], [1.0, 2.0, 3.0]]),
    depth_gains=np.array([1.0, 2.0, 3.0]),
    weights=np.array([0.5, 0.4, 0.1]),
    wait_weight=1.0,
)


@pytest.mark.parametrize(
    ("due", "share", "expected"),
    [
        ([], 0.2, [1, 1, 1]),  # nothing due
        ([1], 1.0, [1, 1, 2]),  # depth 1 needs everybody: tau 2, where the third reaches depth 2
        ([2], 0.2, [1, 2, 3]),  # the third alone is too little: tau 3 brings the second
        ([2], 0.6, [2, 2, 3]),  # tau 4 brings the first
        ([3], 0.2, [3, 2, 3]),  # only the first and third can: tau 9
        ([3], 0.7, [1, 1, 1]),  # devices that can hold it have too few examples: it waits
        ([1, 2, 3], 0.2, [3, 2, 3]),  # the greatest due depth covers the others
        ([2, 3], 0.7, [2, 2, 3]),  # the greatest is out of reach, the other is not
    ],
)
def test_due_depths_are_covered_at_the_least_time(
    due: list[int], share: float, expected: list[int]
) -> None:
    depths = cover(COVERED, np.ones(3, dtype=np.int64), np.array(due, dtype=np.int64), share)
    assert depths.tolist() == expected


def test_cover_forgives_the_rounding_of_shares() -> None:
    assert 0.1 + 0.7 < 0.8
    table = np.array([[1.0, 1.0, 2.0], [1.0, 1.0, 9.0], [1.0, 1.0, 1.5]])
    problem = replace(COVERED, weights=np.array([0.7, 0.2, 0.1]), round_s=table)
    depths = cover(problem, np.ones(3, dtype=np.int64), np.array([3]), 0.8)
    assert depths.tolist() == [3, 2, 3]


def test_cover_never_takes_depth_away() -> None:
    assert cover(COVERED, np.array([3, 1, 1]), np.array([2]), 0.2).tolist() == [3, 2, 3]


def test_a_device_trains_at_least_a_share_of_what_it_holds() -> None:
    inf = math.inf
    round_s = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, inf, 3.0, inf], [1.0, inf, inf, inf]])
    assert at_least(round_s, 0.5).tolist() == [2, 3, 1]
    assert at_least(round_s, 1.0).tolist() == [4, 3, 1]
    assert at_least(round_s, 0.0).tolist() == [1, 1, 1]


def test_depths_stay_within_so_many_blocks_of_the_last() -> None:
    inf = math.inf
    round_s = np.array([[1.0, 2.0, 3.0, 4.0, 5.0]] * 3 + [[1.0, inf, inf, inf, 5.0]] * 2)
    depths = np.array([5, 1, 3, 5, 5])
    last = np.array([1, 4, 0, 1, 3])
    assert near(round_s, depths, last, 2).tolist() == [3, 2, 3, 1, 5]
