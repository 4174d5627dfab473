"""What several seeds say together, and how sure it is."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.metrics.caveats import warnings_of
from analysis.metrics.paired import NUM_RESAMPLES
from analysis.metrics.seeds import mean, median, over_seeds, ratio, speed_ups
from devices.tasks.classification import ACCURACY

INF, NAN = math.inf, math.nan
TIMES = st.lists(st.floats(1, 1e6), min_size=1, max_size=9)


def test_the_mean_has_students_interval() -> None:
    values = [2.0, 4.0, 6.0, NAN]
    one = mean(values)
    # s = 2, n = 3, t_2(0.975) = 4.302653
    assert (one.value, one.num_known) == (4.0, 3)
    assert one.high - 4.0 == pytest.approx(4.302653 * 2 / math.sqrt(3), rel=1e-6)
    low, high = stats.t.interval(0.95, 2, loc=4.0, scale=stats.sem(values[:3]))
    assert low < 0  # no count or measured amount can be negative, so the interval is cut at 0
    assert (one.low, one.high) == pytest.approx((0.0, high))
    shares = mean([0.9, 0.95, 0.99], most=1.0)
    assert shares.high == 1.0
    assert 0.8 < shares.low < 0.9


@given(TIMES)
def test_the_geometric_mean_of_ratios_has_students_interval_of_its_logarithm(
    ratios: list[float],
) -> None:
    one = ratio(ratios, ratios)
    assert one.value == pytest.approx(stats.gmean(ratios))
    if len(ratios) >= 3 and np.std(np.log(ratios)) > 0:
        logs = np.log(ratios)
        ends = stats.t.interval(0.95, len(ratios) - 1, loc=logs.mean(), scale=stats.sem(logs))
        assert (one.low, one.high) == pytest.approx(tuple(np.exp(ends)))


def test_an_interval_ends_where_the_number_itself_must() -> None:
    seeds = {"variant": "a", "seed": range(3), "speed_up_lower": 1.0, "speed_up_upper": 1.0}
    spread = {
        "participation_fairness": [0.85, 0.9, 0.99],
        "final_matthews": [0.01, 0.0, 0.05],
        "best_pearson": [0.7, 0.99, 0.9],
        "final_accuracy": [0.7, 0.99, 0.9],
        "energy_j": [1.0, 9.0, 2.0],
    }
    found = over_seeds(pd.DataFrame({**seeds, **spread})).set_index("metric")
    assert found.loc["participation_fairness", "high"] == 1.0
    assert -1 < found.loc["final_matthews", "low"] < 0  # it may be below 0 where no seed was
    assert found.loc["best_pearson", "high"] == 1.0
    assert found.loc["final_accuracy", "high"] == 1.0
    assert found.loc["energy_j", "low"] == 0.0


def test_variants_of_which_the_same_is_to_be_said_share_a_sentence() -> None:
    runs = pd.DataFrame(
        {
            "variant": [name for name in "abcd" for _ in range(5)],
            "seed": [*range(5)] * 4,
            "lost_turn_share": 0.0,
            "is_reached": [*[True] * 4, False] * 3 + [True] * 5,
            "spent_s": 100.0,
            "smoothed_best": [0.39] * 5 + [0.38] * 5 + [0.39] * 5 + [0.9] * 5,
            "accuracy_error": 0.02,
        }
    )
    assert warnings_of(runs, 0.4, 1, ACCURACY) == [
        "The target of 40 % lies 1.0 points from the best of a and c each, within the noise of "
        "their evaluations (standard error 2.0 points).",
        "The target of 40 % lies 2.0 points from the best of b, within the noise of its "
        "evaluations (standard error 2.0 points).",
        "1 of 5 runs each of a, b and c did not reach 40 %: what they took is known as a bound "
        "alone.",
    ]


def test_seeds_that_a_variant_lacks_are_named() -> None:
    seeds = {"a": range(5), "b": [0, 1, 2, 3], "c": [1], "d": [0, 1, 2, 3]}
    runs = pd.DataFrame(
        [
            {"variant": name, "seed": seed, "lost_turn_share": 0.0}
            for name, own in seeds.items()
            for seed in own
        ]
    )
    assert warnings_of(runs, None, 1, ACCURACY)[1:] == [
        "b and d have no finished run at seed 4, which other variants have.",
        "c has no finished run at seeds 0, 2, 3 and 4, which other variants have.",
    ]
    assert len(warnings_of(runs[runs["variant"] == "c"], None, 1, ACCURACY)) == 1


def test_one_or_two_runs_have_a_value_and_no_interval() -> None:
    for values in ([3.0], [3.0, 3.0]):
        for one in (mean(values), median(values, values), ratio(values, values)):
            assert one.value == pytest.approx(3.0)
            assert math.isnan(one.low)
            assert math.isnan(one.high)


def test_no_run_has_no_number() -> None:
    assert math.isnan(mean([NAN]).value)
    assert math.isnan(median([], []).value)


@given(TIMES)
def test_without_censoring_the_median_is_the_ordinary_one(times: list[float]) -> None:
    one = median(times, times)
    assert one.value == one.upper == np.median(times)


def test_a_run_that_never_arrived_bounds_the_median() -> None:
    # The third run needs more than 50, so the median is between 100 and 150.
    assert median([100, 150, 50], [100, 150, INF])[:2] == (100, 150)
    # The third run was last evaluated after both others arrived, so the median is known.
    assert median([100, 150, 400], [100, 150, INF])[:2] == (150, 150)
    # Two of three never arrive, so the median is bounded below only.
    assert median([100, 300, 400], [100, INF, INF])[:2] == (300, INF)


@given(TIMES, st.data())
def test_the_true_median_lies_within_the_bounds(times: list[float], data: st.DataObject) -> None:
    ends = [data.draw(st.floats(0.5, 1e6)) for _ in times]
    seen = [time <= end for time, end in zip(times, ends, strict=True)]
    lower = [min(time, end) for time, end in zip(times, ends, strict=True)]
    upper = [time if known else INF for time, known in zip(times, seen, strict=True)]
    one = median(lower, upper)
    assert one.value <= np.median(times) <= one.upper


@pytest.mark.parametrize("n", [3, 5])
def test_few_seeds_have_the_span_from_the_smallest_to_the_largest(n: int) -> None:
    times = [float(2**k) for k in range(n)]
    one = median(times, times)
    assert (one.low, one.high) == (times[0], times[-1])


def test_the_interval_of_a_median_is_open_where_a_resample_could_be_censored() -> None:
    one = median([100, 150, 400], [100, 150, INF])
    assert (one.low, one.high) == (100, INF)


@given(TIMES)
def test_the_inverse_of_a_speed_up_is_the_speed_up_of_the_inverse(ratios: list[float]) -> None:
    one = ratio(ratios, ratios)
    other = ratio([1 / r for r in ratios], [1 / r for r in ratios])
    assert other.value == pytest.approx(1 / one.value)
    assert other.low == pytest.approx(1 / one.high, nan_ok=True)


def test_the_bootstrap_interval_covers_the_median_as_often_as_its_order_statistics() -> None:
    """There are n = 11 values.

    The middle of a resample is at most X_(k) with P(Binomial(11, k/11) >= 6), so the interval
    ends at the order statistics a and b where that passes 2.5 and 97.5 %; it covers the true
    median where a to b - 1 of the values lie below it: a Binomial(11, 1/2).
    """
    n, trials = 11, 300
    below = stats.binom(n, np.arange(n + 1) / n).sf(n // 2)
    a, b = np.searchsorted(below, 0.025), np.searchsorted(below, 0.975)
    cover = stats.binom(n, 0.5).cdf(b - 1) - stats.binom(n, 0.5).cdf(a - 1)
    margin = np.abs(below[1:-1] - 0.975).min()
    # The margin is so wide that the random draw of the resamples does not change a or b.
    assert margin > 4 * math.sqrt(0.975 * 0.025 / NUM_RESAMPLES)
    rng = np.random.default_rng(1)
    hits = 0
    for sample in rng.lognormal(0.0, 1.0, (trials, n)):
        one = median(sample.tolist(), sample.tolist())
        ordered = np.sort(sample)
        assert (one.low, one.high) == (ordered[a - 1], ordered[b - 1])
        hits += one.low <= 1.0 <= one.high
    assert abs(hits - trials * cover) < 4 * math.sqrt(trials * cover * (1 - cover))


PER_RUN = pd.DataFrame(
    {
        "variant": ["base", "base", "base", "mine", "mine", "mine", "mine"],
        "seed": [0, 1, 2, 0, 1, 2, 9],
        "is_reached": [True, True, False, True, False, False, True],
        "time_to_target_s": [100.0, 200.0, NAN, 50.0, NAN, NAN, 10.0],
        "spent_s": [500.0, 500.0, 600.0, 400.0, 400.0, 300.0, 20.0],
        "rounds_to_target": [1.0, 2.0, NAN, 2.0, NAN, NAN, 1.0],
        "spent_rounds": [9, 9, 9, 9, 9, 9, 9],
        "bytes_to_target": [1.0, 2.0, NAN, 2.0, NAN, NAN, 1.0],
        "spent_bytes": [9, 9, 9, 9, 9, 9, 9],
        "energy_to_target_j": [1.0, 2.0, NAN, 2.0, NAN, NAN, 1.0],
        "spent_energy_j": [9, 9, 9, 9, 9, 9, 9],
        "final_accuracy": [0.5, 0.6, 0.7, 0.4, NAN, 0.6, 0.5],
    }
)


def test_speed_ups_are_paired_by_seed_and_bounded_where_a_run_never_arrived() -> None:
    pairs = PER_RUN.join(speed_ups(PER_RUN, "base"), how="inner").query("variant == 'mine'")
    assert pairs["seed"].tolist() == [0, 1, 2]  # the baseline never ran seed 9
    assert pairs["speed_up_lower"].tolist() == [2.0, 0.0, 0.0]
    assert pairs["speed_up_upper"].tolist() == [
        2.0,
        0.5,
        INF,
    ]


def test_the_baseline_is_not_compared_with_itself() -> None:
    pairs = PER_RUN.join(speed_ups(PER_RUN, "base")).query("variant == 'base'")
    assert pairs[["speed_up_lower", "speed_up_upper"]].isna().all(axis=None)


def test_the_summary_has_one_row_a_variant_and_metric() -> None:
    per_run = PER_RUN.join(speed_ups(PER_RUN, "base"))
    summary = over_seeds(per_run).set_index(["variant", "metric"])
    time = summary.loc[("base", "time_to_target_s")]
    assert (time["value"], time["upper"], time["num_runs"]) == (200.0, 200.0, 3)
    accuracy = summary.loc[("mine", "final_accuracy")]
    assert (accuracy["value"], accuracy["num_known"]) == (pytest.approx(0.5), 3)
    assert summary.loc[("mine", "is_reached"), "value"] == 0.5
    gain = summary.loc[("mine", "speed_up")]
    assert (gain["value"], gain["upper"]) == (0.0, pytest.approx(2.0))
