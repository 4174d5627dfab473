import math
from fractions import Fraction
from itertools import count

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from traces.bandwidth import BandwidthTrace


def trace(steps: list[tuple[float, float]]) -> BandwidthTrace:
    """Return a trace of (duration_s, rate_bytes_per_s) steps."""
    edges_s = np.concatenate([[0.0], np.cumsum([float(duration) for duration, _ in steps])])
    return BandwidthTrace(edges_s[:-1], np.array([float(r) for _, r in steps]), float(edges_s[-1]))


def walked_s(steps: list[tuple[float, float]], size_bytes: float, start_s: float) -> Fraction:
    """Return the transfer time (s) in exact arithmetic, one step of the trace after the other."""
    period = sum(Fraction(duration) for duration, _ in steps)
    now = Fraction(start_s) % period
    left, spent, edge = Fraction(size_bytes), Fraction(0), Fraction(0)
    for index in count():
        duration, rate = Fraction(steps[index % len(steps)][0]), steps[index % len(steps)][1]
        edge += duration
        if edge <= now:
            continue
        remaining = edge - max(now, edge - duration)
        if rate * remaining >= left:
            return spent + left / rate
        left, spent = left - rate * remaining, spent + remaining
    raise AssertionError


# With eighths of a second and whole bytes, every sum in the code under test is exact in binary, so
# that even a transfer that ends where an outage begins must agree with exact arithmetic.
eighths = st.integers(1, 64).map(lambda n: n / 8)
exact_steps = st.lists(
    st.tuples(eighths, st.sampled_from([0, 0, 1, 3, 8, 1000])), min_size=1, max_size=6
).filter(lambda steps: any(rate for _, rate in steps))
starts_s = st.integers(0, 4000).map(lambda n: n / 8)
float_steps = st.lists(
    st.tuples(st.floats(0.01, 100), st.just(0.0) | st.floats(1, 1e9)), min_size=1, max_size=8
).filter(lambda steps: any(rate for _, rate in steps))


@given(exact_steps, st.integers(1, 3000), starts_s)
def test_transfer_time_equals_exact_integration(
    steps: list[tuple[float, float]], size_bytes: int, start_s: float
) -> None:
    expected = walked_s(steps, size_bytes, start_s)
    assert trace(steps).transfer_s(size_bytes, start_s) == pytest.approx(float(expected), rel=1e-12)


@given(float_steps, st.floats(1, 1e12), st.floats(0, 1e5))
def test_link_carries_the_size_in_the_time_of_its_transfer(
    steps: list[tuple[float, float]], size_bytes: float, start_s: float
) -> None:
    link = trace(steps)
    end_s = start_s + link.transfer_s(size_bytes, start_s)
    carried = link.carried_bytes(end_s) - link.carried_bytes(start_s)
    # The clock is a float: an instant is known to the rounding of itself and of the edge of its
    # step, and bytes to the rate times that, or to the rounding of the sum of all bytes so far.
    slack = 4 * np.spacing(end_s + link.period_s) * max(rate for _, rate in steps)
    slack += 8 * np.spacing(link.carried_bytes(end_s))
    assert carried == pytest.approx(size_bytes, rel=1e-9, abs=float(slack))


@given(exact_steps, st.integers(1, 5000), st.integers(1, 5000), starts_s)
def test_one_transfer_takes_as_long_as_its_two_parts(
    steps: list[tuple[float, float]], first: int, second: int, start_s: float
) -> None:
    link = trace(steps)
    first_s = link.transfer_s(first, start_s)
    end_s = start_s + first_s
    # A first part that ends inside a step ends at a rounded instant, so that the second part may
    # end just before or after an outage. So the first part must end on an eighth, or there must be
    # no outage.
    assume((end_s * 8).is_integer() or all(rate for _, rate in steps))
    parts_s = first_s + link.transfer_s(second, end_s)
    assert link.transfer_s(first + second, start_s) == pytest.approx(parts_s, rel=1e-9)


@given(float_steps, st.floats(1, 1e9), st.floats(0, 1e9), st.floats(0, 1e4))
def test_more_bytes_never_take_less_time(
    steps: list[tuple[float, float]], size_bytes: float, more_bytes: float, start_s: float
) -> None:
    link = trace(steps)
    assert link.transfer_s(size_bytes + more_bytes, start_s) >= link.transfer_s(size_bytes, start_s)


@given(exact_steps, eighths, st.integers(1, 5000), st.data())
def test_outage_delays_transfer_by_its_length(
    steps: list[tuple[float, float]], outage_s: float, size_bytes: float, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(steps)))
    link, cut = trace(steps), trace([*steps[:at], (outage_s, 0), *steps[at:]])
    before_s = float(sum(duration for duration, _ in steps[:at]))
    transfer_s = link.transfer_s(size_bytes, 0.0)
    # The outage delays the transfer once in each loop that the transfer reaches.
    num_outages = max(0, math.ceil((transfer_s - before_s) / link.period_s))
    assert cut.transfer_s(size_bytes, 0.0) == pytest.approx(transfer_s + num_outages * outage_s)


def test_transfer_that_ends_as_an_outage_begins_does_not_wait_for_it() -> None:
    link = trace([(1.0, 10), (5.0, 0), (1.0, 10)])
    assert link.transfer_s(10, 0.0) == 1.0
    assert link.transfer_s(11, 0.0) == pytest.approx(6.1)


def test_transfer_that_starts_in_an_outage_waits_for_its_end() -> None:
    link = trace([(1.0, 10), (5.0, 0), (1.0, 10)])
    assert link.transfer_s(5, 2.0) == 4.5


def test_transfer_may_end_exactly_on_the_edge_of_a_loop() -> None:
    link = trace([(2.0, 0), (3.0, 4)])
    assert link.transfer_s(12, 0.0) == 5.0
    assert link.transfer_s(36, 0.0) == 15.0
    assert link.transfer_s(12, 5.0) == 5.0
    assert link.transfer_s(4, 4.0) == 1.0
    assert trace([(3.0, 4), (2.0, 0)]).transfer_s(24, 0.0) == 8.0


def test_rounding_at_the_edge_of_a_loop_costs_no_outage() -> None:
    # Three loops of 0.1 bytes carry 0.3, which 0.1 + 0.2 exceeds by one rounding.
    assert trace([(1.0, 0), (1.0, 0.1)]).transfer_s(0.1 + 0.2, 0.0) == 6.0
    assert trace([(1.0, 0.1), (1.0, 0)]).transfer_s(0.1 + 0.2, 0.0) == 5.0


def test_rounding_leaves_no_more_than_a_loop_to_the_last_one() -> None:
    # The size is 13 loops less an ulp. By rounding, 12 loops leave more than one loop.
    rate, size_bytes = 175.97976477304877, 2287.736942049634
    assert size_bytes - 12 * rate > rate
    assert trace([(0.5, rate), (0.5, rate)]).transfer_s(size_bytes, 0.0) == 13.0


@given(exact_steps, st.integers(1, 20_000), starts_s, st.integers(0, 10**9))
def test_start_far_out_changes_nothing(
    steps: list[tuple[float, float]], size_bytes: float, start_s: float, loops: int
) -> None:
    # 1e9 loops of up to 48 s stay below 2**53 eighths: these instants are exact.
    link = trace(steps)
    far_s = start_s + loops * link.period_s
    assert link.transfer_s(size_bytes, far_s) == link.transfer_s(size_bytes, start_s)


def test_clock_of_a_billion_seconds_keeps_transfers_to_its_own_precision() -> None:
    link = trace([(0.3, 1e6), (0.7, 5e5)])
    start_s = 1e9 + 0.1
    # The instant itself is rounded to 1.2e-7 s, which limits the accuracy of any transfer.
    assert link.transfer_s(1e5, start_s) == pytest.approx(0.1, abs=np.spacing(start_s))


def test_time_over_more_loops_than_could_be_walked_is_exact() -> None:
    link = trace([(1.0, 3), (1.0, 0), (2.0, 1)])
    assert link.transfer_s(5 * 10**15, 0.0) == 4e15
    assert link.transfer_s(5 * 10**15 + 3, 0.0) == 4e15 + 1


def test_nothing_to_send_takes_no_time() -> None:
    assert trace([(1.0, 0), (1.0, 8)]).transfer_s(0, 0.5) == 0.0


def test_link_that_is_never_up_never_ends_a_transfer() -> None:
    assert trace([(1.0, 0), (2.0, 0)]).transfer_s(1, 0.0) == float("inf")


def test_link_too_slow_for_a_float_never_ends_a_transfer() -> None:
    assert BandwidthTrace.constant(1e-310).transfer_s(1e6, 0.0) == float("inf")


@given(st.floats(1, 1e9), st.floats(1, 1e12), st.floats(0, 1e6))
def test_constant_link_takes_size_over_rate(rate: float, size_bytes: float, start_s: float) -> None:
    link = BandwidthTrace.constant(rate)
    # The code counts bytes from the start of a loop of 1 s, so their rounding limits the accuracy.
    slack_s = 4 * np.spacing(rate + size_bytes) / rate + np.spacing(size_bytes / rate)
    assert link.transfer_s(size_bytes, start_s) == pytest.approx(size_bytes / rate, abs=slack_s)


@given(exact_steps, starts_s)
def test_rate_at_an_instant_is_that_of_the_step_begun_last(
    steps: list[tuple[float, float]], at_s: float
) -> None:
    period_s = sum(duration for duration, _ in steps)
    edges_s = np.cumsum([duration for duration, _ in steps])
    index = int(np.argmax(edges_s > at_s % period_s))
    assert trace(steps).rate_at(at_s) == steps[index][1]


@given(exact_steps, starts_s)
def test_carried_bytes_are_the_sum_of_rate_times_time(
    steps: list[tuple[float, float]], at_s: float
) -> None:
    link = trace(steps)
    instants_s = np.arange(0, at_s, 1 / 8)  # rates change only at multiples of an eighth
    assert link.carried_bytes(at_s) == sum(link.rate_at(t) / 8 for t in instants_s.tolist())


@given(exact_steps)
def test_mean_is_bytes_of_a_loop_over_its_time(steps: list[tuple[float, float]]) -> None:
    carried = sum(duration * rate for duration, rate in steps)
    link = trace(steps)
    assert link.mean_bytes_per_s == carried / link.period_s


@given(exact_steps, starts_s, starts_s)
def test_shifted_trace_is_the_same_loop_begun_later(
    steps: list[tuple[float, float]], offset_s: float, at_s: float
) -> None:
    link = trace(steps)
    shifted = link.begun_at(offset_s)
    assert shifted.rate_at(at_s) == link.rate_at(at_s + offset_s)
    assert shifted.period_s == link.period_s


@settings(max_examples=300)
@given(float_steps, st.floats(0, 1e6), st.floats(1, 1e10))
def test_shifted_trace_is_valid_and_transfers_alike_at_any_offset(
    steps: list[tuple[float, float]], offset_s: float, size_bytes: float
) -> None:
    link = trace(steps)
    shifted = link.begun_at(offset_s)
    assert shifted.mean_bytes_per_s == pytest.approx(link.mean_bytes_per_s, rel=1e-9)
    if all(rate for _, rate in steps):  # else rounding may move an end across an outage
        # Bytes are known to the rounding of a loop's sum; on the slowest step that is this long.
        rounding = np.spacing(link.carried_bytes(link.period_s) + size_bytes)
        slack_s = 1e-8 + 16 * float(rounding) / min(rate for _, rate in steps)
        expected = pytest.approx(link.transfer_s(size_bytes, offset_s), rel=1e-9, abs=slack_s)
        assert shifted.transfer_s(size_bytes, 0.0) == expected


@given(exact_steps, st.sampled_from([0.25, 0.5, 2.0, 8.0]), st.integers(1, 5000), starts_s)
def test_scaled_trace_carries_scaled_bytes_in_the_same_time(
    steps: list[tuple[float, float]], factor: float, size_bytes: float, start_s: float
) -> None:
    link = trace(steps)
    scaled = link.scaled(factor)
    assert scaled.rate_at(start_s) == factor * link.rate_at(start_s)
    expected = pytest.approx(link.transfer_s(size_bytes, start_s), rel=1e-12)
    assert scaled.transfer_s(factor * size_bytes, start_s) == expected


@pytest.mark.parametrize(
    ("time_s", "rate", "period_s", "message"),
    [
        ([], [], 1.0, "at least one of each, got 0 times and 0 values"),
        ([0, 1], [5], 2.0, "got 2 times and 1 values"),
        ([0, np.nan], [1, 1], 2.0, "finite"),
        ([0, 1], [1, np.inf], 2.0, "finite"),
        ([0, 1], [1, 1], np.nan, "the period must be a number, got nan"),
        ([1, 2], [1, 1], 3.0, "the first time must be 0, got 1"),
        ([0, 2, 2], [1, 1, 1], 3.0, "times must increase, got 2 after 2"),
        ([0, 2, 1], [1, 1, 1], 3.0, "times must increase, got 1 after 2"),
        ([0, 2], [1, 1], 2.0, "times must increase, got 2 after 2"),
        ([0, 1], [1, -3], 2.0, "values must be >= 0, got -3"),
    ],
)
def test_impossible_trace_is_refused(
    time_s: list[float], rate: list[float], period_s: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        BandwidthTrace(np.array(time_s, float), np.array(rate, float), period_s)
