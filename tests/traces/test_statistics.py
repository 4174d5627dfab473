"""Statistics of traces agree with closed forms and with plain arithmetic on small steps."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.availability import AvailabilityTrace
from traces.bandwidth import BandwidthTrace
from traces.statistics import (
    autocorrelation,
    online_share_by_hour,
    outage_share,
    rate_distribution,
    rate_quantiles,
    spans,
    variation,
)

DAY_S = 86400.0


def trace(*steps: tuple[float, float]) -> BandwidthTrace:
    """Return a trace of (duration in s, rate) pairs."""
    edges = np.concatenate([[0.0], np.cumsum([duration for duration, _ in steps])])
    rates = np.array([rate for _, rate in steps], dtype=float)
    return BandwidthTrace(edges[:-1], rates, float(edges[-1]))


step_lists = st.lists(
    st.tuples(st.integers(1, 8), st.sampled_from([0, 1, 2, 5, 1000])), min_size=2, max_size=8
).filter(lambda steps: len({rate for _, rate in steps}) > 1)


def test_quantiles_count_time_not_rows() -> None:
    uneven = trace((1, 10), (8, 20), (1, 30))
    assert rate_quantiles(uneven, [0, 0.1, 0.5, 0.9, 0.95, 1]).tolist() == [10, 10, 20, 20, 30, 30]


def test_distribution_of_equal_rates_is_joined() -> None:
    rates, share = rate_distribution(trace((1, 5), (1, 0), (2, 5)))
    assert rates.tolist() == [0, 5]
    assert share.tolist() == [0.25, 1.0]


def test_outage_is_time_below_a_hundredth_of_the_mean() -> None:
    # mean 50: 0.49 is below a hundredth of it, 0.51 is not
    assert outage_share(trace((1, 0.49), (1, 0.51), (2, 99.5))) == 0.25


def test_variation_of_on_and_off_is_one() -> None:
    assert variation(trace((3, 8), (3, 0))) == pytest.approx(1.0)
    assert variation(trace((3, 8))) == 0.0


def test_square_wave_is_opposed_to_itself_half_a_period_later() -> None:
    wave = trace((4, 1), (4, 3))
    assert autocorrelation(wave, 0) == 1.0
    assert autocorrelation(wave, 2) == pytest.approx(0.0)
    assert autocorrelation(wave, 4) == pytest.approx(-1.0)
    assert autocorrelation(wave, 8) == pytest.approx(1.0)


def test_constant_rate_has_no_autocorrelation() -> None:
    assert math.isnan(autocorrelation(trace((1, 0.1), (1, 0.1), (1, 0.1)), 1.0))


@given(step_lists, st.integers(0, 60))
def test_autocorrelation_equals_that_of_the_rate_sampled_each_second(
    steps: list[tuple[int, int]], lag_s: int
) -> None:
    rate = np.repeat([rate for _, rate in steps], [duration for duration, _ in steps]).astype(float)
    expected = np.corrcoef(rate, np.roll(rate, -lag_s))[0, 1]
    assert autocorrelation(trace(*steps), lag_s) == pytest.approx(expected, abs=1e-9)


@given(step_lists, st.floats(0, 1))
def test_quantile_is_reached_for_its_share_of_time_and_no_lower_rate_is(
    steps: list[tuple[int, int]], share: float
) -> None:
    rate = np.repeat([rate for _, rate in steps], [duration for duration, _ in steps])
    (quantile,) = rate_quantiles(trace(*steps), [share])
    assert (rate <= quantile).mean() >= share - 1e-9
    assert (rate < quantile).mean() < share + 1e-9


def test_online_share_of_an_hour_is_exact_over_all_days() -> None:
    first = AvailabilityTrace.of([(1800, 5400), (DAY_S + 3600, DAY_S + 7200)], 2 * DAY_S)
    never = AvailabilityTrace.of([], DAY_S)
    share = online_share_by_hour([first, never])
    assert share[:3].tolist() == [0.5 / 3, 1.5 / 3, 0.0]
    assert share[3:].tolist() == [0.0] * 21


def test_hours_that_a_short_period_does_not_reach_have_no_share() -> None:
    share = online_share_by_hour([AvailabilityTrace.of([(0, 900)], 5400)])
    assert share[:2].tolist() == [0.25, 0.0]
    assert np.isnan(share[2:]).all()


def test_span_across_the_end_of_the_loop_is_one() -> None:
    online_s, offline_s = spans(AvailabilityTrace.of([(0, 2), (5, 6), (9, 10)], 10))
    assert sorted(online_s) == [1, 3]
    assert sorted(offline_s) == [3, 3]
    online_s, offline_s = spans(AvailabilityTrace.of([(1, 2), (5, 6)], 10))
    assert sorted(offline_s) == [3, 5]


@pytest.mark.parametrize("intervals", [[], [(0, 10)]])
def test_state_that_never_ends_is_no_span(intervals: list[tuple[float, float]]) -> None:
    found = spans(AvailabilityTrace.of(intervals, 10))
    assert len(found.online_s) == len(found.offline_s) == 0


def test_one_online_span_across_the_end_leaves_one_offline_span() -> None:
    found = spans(AvailabilityTrace.of([(0, 2), (9, 10)], 10))
    assert found.online_s.tolist() == [3]
    assert found.offline_s.tolist() == [7]
