"""Step traces that end, that are begun late, and that fall below a level."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.bandwidth import BandwidthTrace
from traces.steps import StepTrace

eighths = st.integers(1, 64).map(lambda n: n / 8)
levels = st.sampled_from([0.0, 0.5, 1.0, 2.0, 8.0])
steps = st.lists(st.tuples(eighths, levels), min_size=1, max_size=6)
instants = st.integers(0, 4000).map(lambda n: n / 8)


def trace(pairs: list[tuple[float, float]]) -> StepTrace:
    edges_s = np.concatenate([[0.0], np.cumsum([length for length, _ in pairs])])
    return StepTrace(edges_s[:-1], np.array([value for _, value in pairs]), float(edges_s[-1]))


@given(steps, instants)
def test_ended_trace_plays_once_and_then_holds_its_last_value(
    pairs: list[tuple[float, float]], at_s: float
) -> None:
    looped, ended = trace(pairs), trace(pairs).ended()
    assert ended.at(at_s) == (looped.at(at_s) if at_s < looped.period_s else pairs[-1][1])


@given(steps, instants, instants)
def test_trace_begun_late_is_seen_by_a_clock_that_starts_there(
    pairs: list[tuple[float, float]], offset_s: float, at_s: float
) -> None:
    looped = trace(pairs)
    assert looped.begun_at(offset_s).at(at_s) == looped.at(offset_s + at_s)
    assert looped.begun_at(3.0).begun_at(offset_s).at(at_s) == looped.at(3.0 + offset_s + at_s)


@given(steps, st.integers(1, 3000), instants)
def test_work_of_an_ended_trace_is_done_or_never_will_be(
    pairs: list[tuple[float, float]], amount: int, start_s: float
) -> None:
    ended = trace(pairs).ended()
    needed_s = ended.time_to(amount, start_s)
    if needed_s < math.inf:
        done = ended.amount(start_s + needed_s) - ended.amount(start_s)
        assert done == pytest.approx(amount, rel=1e-9)
    else:
        assert pairs[-1][1] == 0
        assert ended.amount(1e9) - ended.amount(start_s) < amount


def test_constant_holds_for_ever() -> None:
    half = StepTrace.constant(0.5)
    assert (half.at(1e12), half.mean, half.time_to(3.0, 1e6)) == (0.5, 0.5, 6.0)


@given(steps, levels, instants, instants)
def test_first_instant_below_a_level_is_the_first_eighth_below_it(
    pairs: list[tuple[float, float]], level: float, start_s: float, length_s: float
) -> None:
    looped, end_s = trace(pairs), start_s + length_s
    eighths_s = [start_s + n / 8 for n in range(round(length_s * 8))]
    expected = next((t for t in eighths_s if looped.at(t) < level), math.inf)
    assert looped.first_below(level, start_s, end_s) == expected


def test_link_that_ended_is_down_for_ever() -> None:
    link = BandwidthTrace(np.array([0.0, 1.0]), np.array([10.0, 20.0]), 2.0).ended()
    assert link.transfer_s(30, 0.0) == 2.0
    assert link.transfer_s(31, 0.0) == math.inf
    assert link.rate_at(5.0) == 0


@pytest.mark.parametrize("period_s", [0.0, -1.0, math.nan])
def test_trace_without_length_is_refused(period_s: float) -> None:
    with pytest.raises(ValueError, match=r"times must increase|the period must be a number"):
        StepTrace(np.zeros(1), np.ones(1), period_s)
