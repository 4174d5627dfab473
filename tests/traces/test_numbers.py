"""What counts as a number in a file, how large a file may be, and units that a file names."""

import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.fleet.table import read_device_columns
from tests.traces.trace_files import UCC_HEADER, load, ucc_row, write
from traces import text as text_module
from traces.formats import read_link
from traces.generators.diurnal import DiurnalModel
from traces.generators.radio import PathLossLink
from traces.generators.registry import OnOff
from traces.generators.synthetic import MarkovLink
from traces.importers import Recording, import_files
from traces.importers.plain_pickle import loads
from traces.signals import SPEED, step_pool
from traces.steps import StepTrace
from traces.text import did_you_mean, plain_number, read_table, whole_number

NO_NUMBERS = [
    "1_200", "\u0661\u0662", "\uff11\uff12", " 1", "1 ", "inf", "Infinity", "nan", "0x1f", "1,5",
    "1e", "", ".", "--1", "1\n", "\u00b2", "1e5_0",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_only_ascii_decimal_notation_is_a_number(text: str) -> None:
    assert math.isnan(plain_number(text))
    with pytest.raises(ValueError, match=r"line 1: n must be a whole number up to 9, found"):
        whole_number("x, line 1", "n", text, 9)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**18), 10**18))
def test_whatever_python_prints_is_read_as_it_is(value: float) -> None:
    assert plain_number(repr(value)) == float(value)
    assert plain_number(f"{value:e}") == float(f"{value:e}")


READERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "link": (read_link, "time_s,downlink_mbps,uplink_mbps\n0,{},3\n1,11,2\n"),
    "speed": (lambda path: step_pool(str(path), SPEED), "time_s,speed_share\n0,{}\n1,1\n"),
    "devices": (read_device_columns, "device_id,speed\na,{}\n"),
    "csv": (lambda path: import_files("csv", [path]), "time_s,downlink_mbps\n0,{}\n1,2\n"),
    "pensieve": (lambda path: import_files("pensieve", [path]), "1 {}\n2 5\n"),
    "rates": (lambda path: import_files("rates", [path]), "{},Mbits/sec\n"),
    "mahimahi": (lambda path: import_files("mahimahi", [path]), "{}\n2000\n"),
    "ucc": (
        lambda path: import_files("ucc", [path]),
        UCC_HEADER + ucc_row("2020.02.14_09.38.22", "{}"),
    ),
}


@pytest.mark.parametrize("text", ["1_2", "\u0661\u0662", "\uff11\uff12", "infinity"])
@pytest.mark.parametrize("name", READERS)
def test_every_reader_refuses_what_only_python_takes_for_a_number(
    tmp_path: Path, name: str, text: str
) -> None:
    read, content = READERS[name]
    read(write(tmp_path, "mine.csv", content.format("1")))
    path = write(tmp_path, "mine.csv", content.format(text))
    with pytest.raises(ValueError, match=rf"mine\.csv, line \d: .*found .*{re.escape(text)}"):
        read(path)


@pytest.mark.parametrize("stamp", ["2020.02.14_09.38.2\u0662", "\uff12020.02.14_09.38.22"])
def test_dates_are_in_ascii_digits(tmp_path: Path, stamp: str) -> None:
    with pytest.raises(ValueError, match=r"line 2: Timestamp must be"):
        load(tmp_path, "ucc", UCC_HEADER + ucc_row(stamp, 8000))


@pytest.mark.parametrize("content", [b"I1_2\n.", b"L1_2L\n.", b"F1_2.5\n.", b"Finfinity\n."])
def test_numbers_of_an_old_pickle_are_in_decimal_notation(content: bytes) -> None:
    with pytest.raises(ValueError, match="a number in another notation"):
        loads(Path("x"), content)
    assert loads(Path("x"), pickle.dumps([12, 1 << 70, 2.5, True], 0)) == [12, 1 << 70, 2.5, True]


def test_a_file_or_table_that_is_too_large_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.csv"
    with path.open("wb") as file:
        file.truncate(text_module.MAX_BYTES + 1)  # a sparse file takes no room on the disk
    with pytest.raises(ValueError, match=r"large\.csv: expected at most 1,000,000,000 bytes, fou"):
        read_table(path)
    monkeypatch.setattr(text_module, "MAX_ROWS", 3)
    path = write(tmp_path, "long.csv", "a\n" + "1\n" * 4)
    with pytest.raises(ValueError, match=r"long\.csv: expected at most 3 rows, found 4"):
        read_table(path)


def test_a_pickle_that_names_one_long_list_for_many_clients_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts, ends = list(range(0, 2000, 2)), list(range(1, 2001, 2))
    entry = {"active": starts, "inactive": ends, "finish_time": 86400}
    content = pickle.dumps({client: dict(entry) for client in range(20_000)})
    assert len(content) < 1_500_000  # 20 million intervals
    with pytest.raises(ValueError, match=r"expected at most 10,000,000 intervals of all clients"):
        load(tmp_path, "fedscale-behave", content)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MarkovLink("lte", duration_s=1e9, step_s=1e-3),
        lambda: PathLossLink(duration_s=1e9, block_s=1e-3),
        lambda: OnOff(online_s=1.0, offline_s=1.0, period_s=1e12),
        lambda: DiurnalModel(*[np.full((1, 1), 1e-3)] * 2, np.ones(1), num_days=3660),
    ],
)
def test_a_generator_of_endless_traces_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"at most 1,000,000 "):
        make()


def recording(folder: Path, name: str, content: str) -> Recording:
    (found,) = load(folder, name, content)
    assert isinstance(found, Recording)
    return found


def test_rates_with_units_are_one_second_each(tmp_path: Path) -> None:
    found = recording(
        tmp_path,
        "rates",
        "0.57,Mbits/sec\n0.00\tMbits/sec\n12.4 Mbit/s\n980,Kbits/sec\n2 MBytes/sec",
    )
    rates = [0.57e6 / 8, 0, 12.4e6 / 8, 980e3 / 8, 2 * 2**20]
    assert found.downlink.rate_bytes_per_s.tolist() == pytest.approx(rates)
    assert found.downlink.time_s.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"line 1: expected a rate and its unit, .*'5 furlongs'"):
        load(tmp_path, "rates", "5 furlongs\n")


def test_units_that_are_unlikely_are_said_and_those_of_the_columns_are_followed(
    tmp_path: Path,
) -> None:
    rows = [(500 * k, 2600.5 + 50 * k) for k in range(5)]
    cooked = "".join(f"{at}\t{rate}\n" for at, rate in rows)
    (note,) = recording(tmp_path, "pensieve", cooked).notes
    assert note == (
        "2,700 Mbit/s down in steps of 500 s for 41.7 min: milliseconds and kbit/s? If so, import "
        "it as csv under the header time_ms,downlink_kbps"
    )
    table = "time_ms,downlink_kbps\n" + "".join(f"{at},{rate}\n" for at, rate in rows)
    found = recording(tmp_path, "csv", table)
    assert found.notes == ()
    assert found.downlink.period_s == 2.5
    assert found.downlink.mean_bytes_per_s == pytest.approx(2.7005e6 / 8)


def test_a_rate_in_two_units_is_refused_and_other_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one column of the downlink, found downlink_mbps and dow"):
        load(tmp_path, "csv", "time_s,downlink_mbps,downlink_kbps\n0,1,1000\n")
    found = recording(tmp_path, "csv", "time_s,downlink_mbps,colour\n0,1,red\n")
    assert found.notes == ("columns left out: 'colour'",)


def test_tabs_separate_columns_and_a_missing_one_is_named(tmp_path: Path) -> None:
    log = UCC_HEADER + ucc_row("2020.02.14_09.38.22", 8000)
    found = recording(tmp_path, "ucc", log.replace(",", "\t"))
    assert found.downlink.rate_bytes_per_s.tolist() == [1e6]
    with pytest.raises(ValueError, match=r"line 1: .*without DL_bitrate"):
        load(tmp_path, "ucc", "Timestamp\tLongitude\tLevel\n2020.01.02_10.00.00\t9.0\t-95\n")


@pytest.mark.parametrize("offset_s", [0.0, 1e9 - 10, 0.3])
@pytest.mark.parametrize("is_ended", [False, True])
def test_no_transfer_is_instant_however_large_the_clock(offset_s: float, is_ended: bool) -> None:
    trace = StepTrace(np.array([0.0, 5e8]), np.array([1e9, 5e8]), 1e9)
    trace = trace.ended() if is_ended else trace
    needed_s = trace.begun_at(offset_s).time_to(1.0, 9.5e8)
    assert 0 < needed_s < 1e-6
    many = trace.times_to(np.array([1.0]), np.array([9.5e8]), np.array([offset_s]))
    assert many.tolist() == [needed_s]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("wfi", "; did you mean wifi?"),
        ("zzz", ""),
        (None, ""),
        ("lte-drivin", "; did you mean lte-driving?"),
    ],
)
def test_a_refused_name_is_answered_with_the_nearest_one(name: str | None, hint: str) -> None:
    assert did_you_mean(name, ["wifi", "lte-driving", "lte-walking"]) == hint
