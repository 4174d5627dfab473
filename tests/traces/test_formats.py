import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.torture import scaled
from traces.bandwidth import BandwidthTrace, Link
from traces.formats import read_link, write_link

HEADER = "time_s,downlink_mbps,uplink_mbps\n"
one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Link]:
    """Read a text as a link file."""

    def _read(text: str | bytes, **options: float) -> Link:
        path = tmp_path / "mine.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_link(path, **options)

    return _read


def test_rates_are_decimal_megabits_and_the_last_lasts_as_long_as_the_step_before(
    read: Callable[..., Link],
) -> None:
    link = read(HEADER + "0,8,0.8\n2,16,0\n5,0,1.6\n")
    assert link.name == "mine"
    assert link.downlink.rate_bytes_per_s.tolist() == [1e6, 2e6, 0]
    assert link.uplink.rate_bytes_per_s.tolist() == [1e5, 0, 2e5]
    assert link.downlink.time_s.tolist() == link.uplink.time_s.tolist() == [0, 2, 5]
    assert link.downlink.period_s == link.uplink.period_s == 8


def test_one_row_is_a_link_that_never_changes(read: Callable[..., Link]) -> None:
    link = read(HEADER + "0,8,4\n")
    assert link.downlink.transfer_s(5e6, 123.4) == pytest.approx(5.0)
    assert link.uplink.transfer_s(5e6, 123.4) == pytest.approx(10.0)


def test_windows_line_ends_spaces_and_a_byte_order_mark_are_read(read: Callable[..., Link]) -> None:
    text = "\ufefftime_s, downlink_mbps, uplink_mbps\r\n0, 8, 4\r\n1, 16, 8\r\n\r\n"
    assert read(text).downlink.rate_bytes_per_s.tolist() == [1e6, 2e6]


def test_missing_uplink_is_the_given_multiple_of_the_downlink(read: Callable[..., Link]) -> None:
    link = read(HEADER + "0,8,\n1,16,\n", uplink_scale=0.25)
    assert link.uplink.rate_bytes_per_s.tolist() == [0.25e6, 0.5e6]


def test_measured_uplink_is_kept_whatever_the_scale(read: Callable[..., Link]) -> None:
    link = read(HEADER + "0,8,1\n", uplink_scale=0.25)
    assert link.uplink.rate_bytes_per_s.tolist() == [1e6 / 8]


@pytest.mark.parametrize("scale", [0, -1, math.nan, math.inf])
def test_scale_that_makes_no_link_is_refused(read: Callable[..., Link], scale: float) -> None:
    with pytest.raises(ValueError, match="uplink_scale must be a number above 0, got"):
        read(HEADER + "0,8,\n", uplink_scale=scale)


WRONG = {
    "empty file": (
        "",
        "line 1: expected the header time_s,downlink_mbps,uplink_mbps, found nothin",
    ),
    "no header": ("0,1,1\n1,1,1\n", "line 1: expected the header .*, found '0,1,1'"),
    "missing column": ("time_s,downlink_mbps\n0,1\n", "line 1: expected the header .*, found"),
    "other order": ("time_s,uplink_mbps,downlink_mbps\n0,1,1\n", "line 1: expected the header"),
    "header alone": (HEADER, "line 2: expected at least one row, found the end of the file"),
    "text": (
        HEADER + "0,1,1\n1,fast,1\n",
        "line 3: downlink_mbps must be a number .* found 'fast'",
    ),
    "empty downlink": (
        HEADER + "0,,1\n",
        "line 2: downlink_mbps must be a number .* found nothing",
    ),
    "empty time": (HEADER + ",1,1\n", "line 2: time_s must be a number .*found nothing"),
    "negative": (HEADER + "0,1,1\n1,1,-2\n", "line 3: uplink_mbps must be .* found '-2'"),
    "nan": (HEADER + "0,nan,1\n", "line 2: downlink_mbps must be a number .* found 'nan'"),
    "inf": (HEADER + "0,1,inf\n", r"line 2: uplink_mbps must be a number in \[0, 1e\+06\], found"),
    "not in Mbit/s": (HEADER + "0,5e7,1\n", "line 2: downlink_mbps must be .* found '5e7'"),
    "not in seconds": (HEADER + "0,1,1\n1700000000000,1,1\n", "line 3: time_s must be a number"),
    "late start": (HEADER + "3,1,1\n4,1,1\n", "line 2: the first time_s must be 0, found 3"),
    "backwards": (
        HEADER + "0,1,1\n5,1,1\n4,1,1\n",
        "line 4: time_s must increase, found 4 after 5",
    ),
    "repeated": (HEADER + "0,1,1\n5,1,1\n5,1,1\n", "line 4: time_s must increase, found 5 after 5"),
    "truncated": (HEADER + "0,1,1\n1,1", "line 3: expected 3 fields .* found 2 in '1,1'"),
    "blank line": (HEADER + "0,1,1\n\n1,1,1\n", "line 3: expected 3 fields .* found 1 in ''"),
    "extra field": (HEADER + "0,1,1,9\n", "line 2: expected 3 fields .* found 4"),
    "always zero": (HEADER + "0,0,1\n1,0,1\n", "lines 2 to 3: downlink_mbps must be above 0 somew"),
    "uplink zero": (HEADER + "0,1,0\n", "lines 2 to 2: uplink_mbps must be above 0 somewhere"),
    "no uplink": (HEADER + "0,1,\n1,1,\n", "lines 2 to 3: uplink_mbps is empty.*give uplink_scale"),
    "uplink stops": (HEADER + "0,1,1\n1,1,\n", "line 3: uplink_mbps must be given in every row or"),
    "uplink starts": (HEADER + "0,1,\n1,1,1\n", "line 3: .* found it given here, unlike in line 2"),
    "not text": (HEADER.encode() + b"0,1,1\n1,\xff\xfe,1\n", "line 3: expected UTF-8 text"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_broken_file_is_refused_with_its_name_and_line(
    read: Callable[..., Link], text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=r"mine\.csv, " + message):
        read(text)


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.csv: the file cannot be read: No such file"):
        read_link(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="the file cannot be read: Is a directory"):
        read_link(tmp_path)


def test_long_line_is_not_repeated_in_full(read: Callable[..., Link]) -> None:
    with pytest.raises(ValueError, match="line 1") as error:
        read("x" * 10_000)
    assert len(str(error.value)) < 500


# Pieces of text that other programs or careless editing may leave in a file.
pieces = st.sampled_from(
    ["0", "1", "2", "-1", "1e3", "1e-320", "nan", "inf", "", ",", ",", ";", "\t", " ", "\n", "\n",
     "\r\n", "\r", '"', ".", "0x1", "1_0", "\x00", "\x85", "\u0663", "#", HEADER, "0,1,1\n"]
)  # fmt: skip
valid = HEADER + "".join(f"{n},{n % 3},{n % 2}\n" for n in range(6))


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """Draw a valid file with a few stretches cut out, replaced or repeated."""
    text = valid
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(start + 12, len(text))))
        text = text[:start] + "".join(draw(st.lists(pieces, max_size=3))) + text[end:]
    return text


@pytest.mark.torture
@settings(one_folder, max_examples=scaled(500, 3000, least=3000))
@given(text=damaged() | st.lists(pieces, max_size=30).map("".join))
def test_any_damage_gives_a_link_or_an_error_with_file_and_line(
    read: Callable[..., Link], text: str
) -> None:
    try:
        link = read(text)
    except ValueError as error:
        assert re.search(r"mine\.csv, lines? \d+", str(error)), error  # noqa: PT017
    else:
        for trace in (link.downlink, link.uplink):
            assert trace.mean_bytes_per_s > 0
            assert trace.transfer_s(1e6, 0.0) > 0


@pytest.mark.torture
@settings(one_folder, max_examples=scaled(150, 500, least=500))
@given(content=st.binary(max_size=200))
def test_any_bytes_give_a_link_or_an_error_with_file_and_line(
    read: Callable[..., Link], content: bytes
) -> None:
    with pytest.raises(ValueError, match=r"mine\.csv, lines? \d+"):
        read(content)  # 200 random bytes do not contain the header
    with pytest.raises(ValueError, match=r"mine\.csv, lines? \d+"):
        read(HEADER.encode() + b"0,1,1\n1," + content + b"\n,")


@st.composite
def traces(draw: st.DrawFn, period_s: float) -> BandwidthTrace:
    num = draw(st.integers(1, 8))
    edges = draw(st.lists(st.integers(1, 999), min_size=num - 1, max_size=num - 1, unique=True))
    time_s = np.array([0, *sorted(edges)]) * (period_s / 1000)
    rates = draw(st.lists(st.just(0.0) | st.floats(0.125, 1e9), min_size=num, max_size=num))
    return BandwidthTrace(time_s, np.array([*rates[:-1], rates[-1] + 1]), period_s)


@pytest.mark.torture
@settings(one_folder, max_examples=scaled(100, 300, least=300))
@given(data=st.data(), period_s=st.sampled_from([1.0, 60.0, 86400.0]))
def test_written_link_reads_back_with_the_same_rates_at_the_same_times(
    tmp_path: Path, data: st.DataObject, period_s: float
) -> None:
    link = Link("there", data.draw(traces(period_s)), data.draw(traces(period_s)))
    path = tmp_path / "there.csv"
    write_link(path, link)
    back = read_link(path)
    assert back.name == "there"
    for wrote, got in ((link.downlink, back.downlink), (link.uplink, back.uplink)):
        if len(got.time_s) > 1:
            assert got.period_s == pytest.approx(period_s, rel=1e-11)
        middles_s = (np.arange(1000) + 0.5) * (period_s / 1000)  # rates change only at thousandths
        for at_s in middles_s[:: data.draw(st.integers(20, 60))].tolist():
            assert got.rate_at(at_s) == pytest.approx(wrote.rate_at(at_s), rel=1e-11)


def test_written_file_is_plain_and_ends_with_a_line_end(tmp_path: Path) -> None:
    trace = BandwidthTrace(np.array([0.0, 1.0, 2.0]), np.array([1e6, 0.0, 11.053e6 / 8]), 4.0)
    write_link(tmp_path / "x.csv", Link("x", trace, trace.scaled(0.5)))
    assert (tmp_path / "x.csv").read_bytes().decode() == (
        HEADER + "0,8,4\n1,0,0\n2,11.053,5.5265\n3,11.053,5.5265\n"
    )


def test_directions_with_different_periods_cannot_share_a_file(tmp_path: Path) -> None:
    link = Link("odd", BandwidthTrace.constant(1.0), BandwidthTrace(np.zeros(1), np.ones(1), 7.0))
    with pytest.raises(ValueError, match=r"one period.*got 1 s down and 7 s up \(link odd\)"):
        write_link(tmp_path / "x.csv", link)
