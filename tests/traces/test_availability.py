"""Availability is exact on and off, round the loop, and in the CSV that holds it."""

import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from traces.availability import ALWAYS, AvailabilityTrace, availability_text, read_availability

HEADER = "device_id,start_s,end_s,state\n"
one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def trace(*intervals: tuple[float, float], period_s: float = 10.0) -> AvailabilityTrace:
    return AvailabilityTrace.of(intervals, period_s)


@st.composite
def traces(draw: st.DrawFn) -> AvailabilityTrace:
    """Draw traces with edges on eighths of a second, so that binary sums and shifts are exact."""
    period = draw(st.integers(1, 400))
    edges = sorted(draw(st.sets(st.integers(0, period), max_size=12)))
    edges = edges[: len(edges) // 2 * 2]
    pairs = [(a / 8, b / 8) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return AvailabilityTrace.of(pairs, period / 8)


eighths = st.integers(0, 10_000).map(lambda n: n / 8)


def is_online_by_definition(device: AvailabilityTrace, at_s: float) -> bool:
    within_s = at_s % device.period_s
    pairs = zip(device.start_s, device.end_s, strict=True)
    return any(start_s <= within_s < end_s for start_s, end_s in pairs)


def test_intervals_are_half_open() -> None:
    device = trace((2, 5))
    assert [device.is_online(at_s) for at_s in (0, 2, 4.999, 5, 12, 15)] == [
        False, True, True, False, True, False
    ]  # fmt: skip


def test_next_change_is_the_end_then_the_start_of_the_next_loop() -> None:
    device = trace((2, 5))
    assert [device.next_change_s(at_s) for at_s in (0, 2, 4, 5, 11, 12, 15)] == [
        2, 5, 5, 12, 12, 15, 22
    ]  # fmt: skip


def test_interval_across_the_end_of_the_loop_is_no_change_there() -> None:
    device = trace((0, 2), (7, 10))
    assert device.next_change_s(8) == 12
    assert device.is_online(9.5)
    assert device.is_online(10)


@pytest.mark.parametrize(("device", "online"), [(trace(), False), (trace((0, 10)), True)])
def test_state_that_never_changes_never_does(device: AvailabilityTrace, online: bool) -> None:
    assert device.is_online(123.4) is online
    assert device.next_change_s(123.4) == math.inf
    assert device.fraction_online == float(online)


@given(traces(), eighths)
def test_state_follows_the_intervals_in_every_loop(device: AvailabilityTrace, at_s: float) -> None:
    assert device.is_online(at_s) == is_online_by_definition(device, at_s)


@given(traces(), eighths)
def test_next_change_is_the_first_eighth_at_which_the_state_differs(
    device: AvailabilityTrace, at_s: float
) -> None:
    now = device.is_online(at_s)
    later = (at_s + n / 8 for n in range(1, round(device.period_s * 8) + 1))
    expected = next((t for t in later if is_online_by_definition(device, t) != now), math.inf)
    assert device.next_change_s(at_s) == expected


@given(traces(), eighths, eighths)
def test_shift_is_the_same_loop_begun_later(
    device: AvailabilityTrace, offset_s: float, at_s: float
) -> None:
    moved = device.shifted(offset_s)
    assert moved.is_online(at_s) == device.is_online(at_s + offset_s)
    assert moved.fraction_online == device.fraction_online
    assert moved.shifted(-offset_s).start_s.tolist() == device.start_s.tolist()


uneven_spans = st.lists(st.floats(0.001, 1e5), min_size=2, max_size=12)


@given(
    uneven_spans,
    st.booleans(),
    st.floats(-1e3, 1e9),
    st.lists(st.sampled_from([0.0, 0.125, 999.0]) | st.floats(0, 1e6), min_size=1, max_size=8),
)
def test_states_of_many_clocks_are_those_of_each(
    lengths_s: list[float], loops: bool, at_s: float, offsets_s: list[float]
) -> None:
    edges = np.cumsum(lengths_s)
    pairs = list(zip(edges[:-1:2].tolist(), edges[1::2].tolist(), strict=False))
    device = AvailabilityTrace.of(pairs, float(edges[-1]) if loops else math.inf)
    begun = [device.begun_at(offset_s) if offset_s else device for offset_s in offsets_s]
    online, next_s = device.spans_at(at_s, np.array(offsets_s))
    assert online.tolist() == [own.is_online(at_s) for own in begun]
    assert next_s.tolist() == [own.next_change_s(at_s) for own in begun]


@given(traces(), st.integers(0, 500))
def test_seconds_online_are_the_sum_of_the_intervals(
    device: AvailabilityTrace, eighth: int
) -> None:
    expected = sum(is_online_by_definition(device, n / 8) for n in range(eighth)) / 8
    assert device.online_s(eighth / 8) == expected


uneven = st.lists(st.floats(0.001, 1e5), min_size=2, max_size=12)


@given(uneven, st.floats(0, 1e9), st.floats(0, 1e6))
def test_whoever_waits_for_a_change_finds_the_state_changed(
    lengths_s: list[float], at_s: float, offset_s: float
) -> None:
    # Any floats, and a clock of up to 1e9 s: an instant is rounded there, by 1.2e-7 s at most,
    # which is less than the shortest span.
    edges = np.cumsum(lengths_s)
    pairs = list(zip(edges[:-1:2].tolist(), edges[1::2].tolist(), strict=False))
    device = AvailabilityTrace.of(pairs, float(edges[-1])).shifted(offset_s)
    for _ in range(4):
        later_s = device.next_change_s(at_s)
        if math.isinf(later_s):
            return
        assert later_s > at_s
        assert device.is_online(later_s) != device.is_online(at_s)
        at_s = later_s


@pytest.mark.parametrize(
    ("intervals", "period_s", "message"),
    [
        ([(1, 3), (2, 4)], 10, "neither be empty, touch nor overlap, got 2 after 3"),
        ([(3, 1)], 10, "got 1 after 3"),
        ([(1, 11)], 10, r"must lie in \[0, 10\] s"),
        ([(-1, 2)], 10, r"must lie in \[0, 10\] s"),
        ([(1, math.nan)], 10, r"must lie in \[0, 10\] s"),
        ([], 0, "the period must be a number above 0, got 0"),
    ],
)
def test_impossible_availability_is_refused(
    intervals: list[tuple[float, float]], period_s: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        AvailabilityTrace.of(intervals, period_s)


def test_unequal_numbers_of_starts_and_ends_are_refused() -> None:
    with pytest.raises(ValueError, match="as many starts as ends"):
        AvailabilityTrace(np.zeros(2), np.ones(1), 3.0)


def test_file_holds_online_rows_and_the_end_of_a_period_that_ends_offline() -> None:
    text = availability_text({"a": trace((1, 2.5), (4, 10)), "b": trace((0, 3)), "never": trace()})
    assert text == HEADER + (
        "a,1,2.5,online\na,4,10,online\nb,0,3,online\nb,3,10,offline\nnever,0,10,offline\n"
    )


@settings(one_folder)
@given(
    devices=st.dictionaries(st.sampled_from(["1", "b c", 'x,"y']), traces(), min_size=1),
    offset_s=st.floats(0, 99),
)
def test_written_file_reads_back_without_loss(
    tmp_path: Path, devices: dict[str, AvailabilityTrace], offset_s: float
) -> None:
    devices = {name: device.shifted(offset_s) for name, device in devices.items()}
    path = tmp_path / "there.csv"
    path.write_text(availability_text(devices), "utf-8")
    back = read_availability(path)
    assert list(back) == list(devices)
    for name, device in devices.items():
        assert back[name].period_s == device.period_s
        assert back[name].start_s.tolist() == device.start_s.tolist()
        assert back[name].end_s.tolist() == device.end_s.tolist()


WRONG = {
    "empty": ("", "line 1: expected a header with the columns device_id, .* found nothing"),
    "header": ("device,start_s,end_s,state\n", "line 1: expected a header .* found 'device,start"),
    "no rows": (HEADER, "line 1: expected at least one row below, found none"),
    "truncated": (HEADER + "a,0,1,online\na,2", "line 3: expected 4 fields .* found 2 in 'a,2'"),
    "text": (HEADER + "a,zero,1,online\n", "line 2: start_s must be a number .* found 'zero'"),
    "nan": (HEADER + "a,0,nan,online\n", "line 2: end_s must be a number .* found 'nan'"),
    "milliseconds": (HEADER + "a,0,1.4e12,online\n", "line 2: end_s must be .* found '1.4e12'"),
    "negative": (HEADER + "a,-1,1,online\n", r"line 2: start_s must be a number in \[0, "),
    "empty interval": (HEADER + "a,1,1,online\n", "line 2: end_s must be above start_s, found 1 a"),
    "state": (HEADER + "a,0,1,on\n", "line 2: state must be one of online, offline, found 'on'"),
    "overlap": (
        HEADER + "a,0,2,online\nb,0,9,online\na,1,3,online\n",
        "line 4: the intervals of a device must rise and not overlap, found 1 s after 2 s",
    ),
    "no device": (HEADER + " ,0,1,online\n", "line 2: device_id must be printable text, found ''"),
    "twice": ("state,start_s,end_s,state\n", "line 1: expected each column once"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_broken_file_is_refused_with_its_name_and_line(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=r"mine\.csv, " + message):
        read_availability(path)


@given(traces(), eighths, eighths)
def test_trace_begun_later_is_seen_by_a_clock_that_starts_there(
    device: AvailabilityTrace, offset_s: float, at_s: float
) -> None:
    begun = device.begun_at(offset_s)
    assert begun.is_online(at_s) == device.is_online(offset_s + at_s)
    assert begun.next_change_s(at_s) == device.next_change_s(offset_s + at_s) - offset_s


@given(traces(), eighths)
def test_trace_that_ended_is_offline_ever_after(device: AvailabilityTrace, at_s: float) -> None:
    ended = device.ended()
    assert ended.is_online(at_s) == (at_s < device.period_s and device.is_online(at_s))
    if at_s >= device.period_s:
        assert ended.next_change_s(at_s) == math.inf


odd = st.floats(0, 1e7)


@given(traces(), odd, odd)
def test_who_waits_for_a_change_finds_it_at_any_offset(
    device: AvailabilityTrace, offset_s: float, at_s: float
) -> None:
    begun = device.begun_at(offset_s)
    change_s = begun.next_change_s(at_s)
    if change_s < math.inf:
        assert change_s > at_s
        assert begun.is_online(change_s) != begun.is_online(at_s)


def test_who_is_always_there_never_leaves() -> None:
    assert ALWAYS.is_online(0.0)
    assert ALWAYS.is_online(1e15)
    assert ALWAYS.next_change_s(5.0) == math.inf


@given(made=traces(), at_s=st.floats(0, 1e4), offset_s=st.floats(0, 200), ends=st.booleans())
def test_spans_in_turn_are_what_a_search_finds(
    made: AvailabilityTrace, at_s: float, offset_s: float, ends: bool
) -> None:
    begun = (made.ended() if ends else made).begun_at(offset_s)
    for online, until_s in islice(begun.spans_from(at_s), 20):
        assert (online, until_s) == (begun.is_online(at_s), begun.next_change_s(at_s))
        at_s = until_s
