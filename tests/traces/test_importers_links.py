"""Links of other formats are read from a file of each made by hand, through our CSV and back, with
every trap."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.traces.trace_files import FILES, UCC_HEADER, back, load, sample, ucc_row, write
from traces.bandwidth import BandwidthTrace, Link
from traces.importers import FORMATS, import_files

MBPS = 1e6 / 8
CASES = Path(__file__).parents[3] / "shared/cases"


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str, str | bytes], Link]:
    """Return a function that imports a text as the one recording in it, and reads the CSV of
    that."""

    def _read(format_name: str, content: str | bytes) -> Link:
        (recording,) = load(tmp_path, format_name, content)
        return back(tmp_path, recording)

    return _read


def mbps(trace: BandwidthTrace) -> Any:
    return pytest.approx([rate / MBPS for rate in trace.rate_bytes_per_s.tolist()])


def at(trace: BandwidthTrace, *instants_s: float) -> Any:
    """Return the rates in Mbit/s at these instants."""
    return pytest.approx([trace.rate_at(at_s) / MBPS for at_s in instants_s])


def test_mahimahi_counts_packets_of_1500_bytes_in_each_second(
    read: Callable[[str, str | bytes], Link],
) -> None:
    link = read("mahimahi", "0\n0\n1\n999\n1000\n1000\n2500\n")
    assert link.name == "drive"
    assert link.downlink.period_s == pytest.approx(2.5)
    assert link.downlink.rate_at(0.5) == 4 * 1500
    assert link.downlink.rate_at(1.5) == 2 * 1500
    assert link.downlink.rate_at(2.25) == pytest.approx(1 * 1500 / 0.5)  # the last step is 0.5 s


def test_mahimahi_packet_at_the_end_of_the_period_is_counted_in_it(
    read: Callable[[str, str | bytes], Link],
) -> None:
    link = read("mahimahi", "500\n1000\n1000\n")
    assert link.downlink.period_s == 1.0
    assert link.downlink.mean_bytes_per_s == 3 * 1500


def test_mahimahi_silence_is_an_outage_and_costs_no_memory(tmp_path: Path) -> None:
    (recording,) = load(tmp_path, "mahimahi", "0\n9999999000\n")
    assert len(recording.downlink.time_s) == 3
    assert recording.downlink.rate_at(5e6) == 0
    assert recording.downlink.mean_bytes_per_s * recording.downlink.period_s == pytest.approx(3000)


def test_mahimahi_directions_lie_side_by_side_cut_to_the_shorter(tmp_path: Path) -> None:
    down = write(tmp_path, "drive.down", "0\n1000\n2000\n3000\n3000\n")
    up = write(tmp_path, "drive.up", "500\n1500\n2000\n")
    (recording,) = import_files("mahimahi", [up, down])
    link = back(tmp_path, recording)
    assert link.downlink.period_s == link.uplink.period_s == 2.0
    assert link.downlink.rate_bytes_per_s.tolist() == [1500, 3000]
    assert link.uplink.rate_bytes_per_s.tolist() == [1500, 3000]
    assert recording.notes == ("down ends at 3 s and up at 2 s: both cut to 2 s",)


def test_mahimahi_downlink_alone_leaves_the_uplink_unmeasured(tmp_path: Path) -> None:
    (recording,) = load(tmp_path, "mahimahi", FILES["mahimahi"])
    assert recording.uplink is None
    assert recording.text.splitlines()[1].endswith(",")
    assert recording.with_uplink(0.5).uplink.mean_bytes_per_s == pytest.approx(
        0.5 * recording.downlink.mean_bytes_per_s
    )


def test_mahimahi_uplink_alone_asks_for_its_downlink(tmp_path: Path) -> None:
    up = write(tmp_path, "drive.up", "500\n")
    with pytest.raises(ValueError, match=r"drive\.up: expected the downlink drive\.down beside"):
        import_files("mahimahi", [up])


def test_cooked_rates_hold_to_the_next_row_and_the_first_time_becomes_0(
    read: Callable[[str, str | bytes], Link],
) -> None:
    link = read("pensieve", "2.0\t0.8\n7.0\t1.6\n9.5\t0\n")
    assert link.downlink.time_s.tolist() == [0, 5, 7.5]
    assert mbps(link.downlink) == [0.8, 1.6, 0]
    assert link.downlink.period_s == 10


def test_cooked_trace_counted_from_1970_is_read(read: Callable[[str, str | bytes], Link]) -> None:
    assert read("pensieve", "1500000000.25 1\n1500000000.75 2\n").downlink.period_s == 1.0


def test_cooked_negative_rates_are_left_out_and_said_so(tmp_path: Path) -> None:
    (recording,) = load(tmp_path, "pensieve", "0 1\n1 -0.2\n2 3\n")
    assert mbps(recording.downlink) == [1, 3]
    assert recording.downlink.time_s.tolist() == [0, 2]
    assert recording.notes == ("rows left out for their negative rate: 1",)


def test_puffer_is_megabytes_where_pensieve_is_megabits(
    read: Callable[[str, str | bytes], Link],
) -> None:
    megabits, megabytes = (read(name, FILES["puffer"]).downlink for name in ("pensieve", "puffer"))
    assert mbps(megabits) == [0.5, 1.0]
    assert mbps(megabytes) == [4.0, 8.0]


def test_lumos5g_is_read_as_pensieve(read: Callable[[str, str | bytes], Link]) -> None:
    assert mbps(read("lumos5g", FILES["lumos5g"]).downlink) == [812.5, 0, 95]


def test_ghent_rate_is_bytes_over_its_own_milliseconds_zeros_and_all(
    read: Callable[[str, str | bytes], Link],
) -> None:
    link = read(
        "ghent",
        "1453121790686 39287 51.03 3.73 2493100 1000\n1453121791687 40288 51.03 3.73 2763504 1001\n"
        "1453121792686 41287 51.03 3.73 2728896 0999\n",
    )
    assert mbps(link.downlink) == [19.9448, 2763504 * 8 / 1001e3, 2728896 * 8 / 999e3, link_tail()]
    assert link.downlink.period_s == pytest.approx(3.0)


def link_tail() -> float:
    """Return the last step, which differs from the one before it, so our file holds it in two
    halves."""
    return 2728896 * 8 / 999e3


def test_hsdpa_is_ghent_with_an_epoch_in_seconds(
    read: Callable[[str, str | bytes], Link], tmp_path: Path
) -> None:
    link = read("hsdpa", FILES["hsdpa"])
    assert at(link.downlink, 0.5, 1.5) == [248069 * 8 / 1008e3, 191698 * 8 / 1080e3]
    with pytest.raises(ValueError, match=r"line 1: epoch in ms must be .* like the format hsdpa"):
        load(tmp_path, "ghent", FILES["hsdpa"])
    with pytest.raises(ValueError, match=r"line 1: epoch in s must be .* like the format ghent"):
        load(tmp_path, "hsdpa", FILES["ghent"])


def test_time_between_rows_that_no_row_covers_is_left_out(tmp_path: Path) -> None:
    (recording,) = load(
        tmp_path, "hsdpa", "1289406399 1000 59 10 1000 1000\n1289406410 12000 59 10 2000 1000\n"
    )
    assert recording.downlink.period_s == 2.0
    assert recording.notes == ("left out: 10 s that no row covers",)


def ucc(*rows: str) -> str:
    return UCC_HEADER + "".join(rows)


def test_ucc_bitrates_are_kilobits_and_the_uplink_of_a_download_is_dropped(tmp_path: Path) -> None:
    (recording,) = load(tmp_path, "ucc", FILES["ucc"])
    assert recording.uplink is None
    assert mbps(back(tmp_path, recording).downlink) == [8, 4, 0]


def test_ucc_4g_with_other_columns_is_read_by_name(
    read: Callable[[str, str | bytes], Link],
) -> None:
    link = read(
        "ucc",
        "Timestamp,Speed,State,UL_bitrate,DL_bitrate,ServingCell_Distance\n"
        "2017.11.22_10.07.03,4,D,194,5178,609.7\n",
    )
    assert mbps(link.downlink) == [5.178]


def test_ucc_of_two_rows_in_a_second_the_larger_is_kept(
    read: Callable[[str, str | bytes], Link],
) -> None:
    link = read("ucc", ucc(
        ucc_row("2020.02.14_09.38.22", 100), ucc_row("2020.02.14_09.38.22", 900),
        ucc_row("2020.02.14_09.38.22", 300), ucc_row("2020.02.14_09.38.23", 500),
    ))  # fmt: skip
    assert mbps(link.downlink) == [0.9, 0.5]


def test_ucc_missing_seconds_take_the_rate_of_the_next_row(
    read: Callable[[str, str | bytes], Link],
) -> None:
    link = read(
        "ucc", ucc(ucc_row("2020.02.14_09.38.59", 100), ucc_row("2020.02.14_09.39.02", 700))
    )
    assert mbps(link.downlink) == [0.1, 0.7, 0.7, 0.7]


def test_ucc_row_without_a_value_is_a_missing_second(
    read: Callable[[str, str | bytes], Link],
) -> None:
    rows = [("09.38.01", 100), ("09.38.02", "-"), ("09.38.03", 700)]
    link = read("ucc", ucc(*[ucc_row(f"2020.02.14_{at}", kbps) for at, kbps in rows]))
    assert mbps(link.downlink) == [0.1, 0.7, 0.7]


def test_ucc_break_in_the_recording_is_left_out(tmp_path: Path) -> None:
    (recording,) = load(
        tmp_path,
        "ucc",
        ucc(ucc_row("2020.02.14_09.38.00", 100), ucc_row("2020.02.14_11.38.00", 700)),
    )
    assert mbps(recording.downlink) == [0.1, 0.7]
    assert recording.notes == ("left out: 7199 s in gaps longer than 10 s",)


def test_ucc_seconds_without_a_download_are_left_out(tmp_path: Path) -> None:
    states = ["D", "I", "V", "VD"]
    rows = [ucc_row(f"2020.02.14_09.38.0{n}", 1000 * (n + 1), s) for n, s in enumerate(states)]
    (recording,) = load(tmp_path, "ucc", ucc(*rows))
    assert mbps(recording.downlink) == [1, 4]
    assert recording.notes == ("left out: 2 s without a download",)


def test_own_columns_in_any_order_with_any_first_time(
    read: Callable[[str, str | bytes], Link],
) -> None:
    link = read("csv", "note,uplink_mbps,downlink_mbps,time_s\nx,1,8,100\ny,2,16,102\n")
    assert link.downlink.time_s.tolist() == [0, 2]
    assert mbps(link.downlink) == [8, 16]
    assert mbps(link.uplink) == [1, 2]


def test_own_file_without_uplink_leaves_it_unmeasured(tmp_path: Path) -> None:
    (recording,) = load(tmp_path, "csv", FILES["csv"])
    assert recording.uplink is None


@pytest.mark.parametrize("name", [n for n, f in FORMATS.items() if f.gives.startswith("link")])
def test_import_and_csv_keep_every_rate_of_the_hand_made_file(tmp_path: Path, name: str) -> None:
    (recording,) = import_files(name, [sample(tmp_path, name)])
    link = back(tmp_path, recording)
    assert link.downlink.mean_bytes_per_s == pytest.approx(recording.downlink.mean_bytes_per_s)
    for n in range(100):
        at_s = (n + 0.5) / 100 * recording.downlink.period_s
        expected = pytest.approx(recording.downlink.rate_at(at_s), rel=1e-11)
        assert link.downlink.rate_at(at_s) == expected


WRONG = {
    "mahimahi empty": ("mahimahi", "", "line 1: expected milliseconds .* found an empty file"),
    "mahimahi zero": ("mahimahi", "0\n0\n", "line 2: expected milliseconds that end above 0"),
    "mahimahi float": ("mahimahi", "0\n1.5\n", "line 2: the time in ms must be .* '1.5'"),
    "mahimahi sign": ("mahimahi", "0\n-3\n", "line 2: the time in ms must be .* '-3'"),
    "mahimahi blank": ("mahimahi", "0\n\n3\n", "line 2: the time in ms must be .* found nothing"),
    "mahimahi huge": ("mahimahi", "0\n1" + "0" * 30, "line 2: the time in ms must be a whole"),
    "mahimahi back": ("mahimahi", "5\n4\n", "line 2: milliseconds must never decrease, found 4"),
    "cooked empty": ("pensieve", "", "line 1: expected a time and a rate, found no row with both"),
    "cooked columns": ("pensieve", "0 1\n1 2 3\n", "line 2: expected a time in s and a rate"),
    "cooked cut": ("pensieve", "0 1\n1", "line 2: expected a time in s and a rate, .* found '1'"),
    "cooked text": ("pensieve", "0 1\n1 fast\n", "line 2: the rate must be .* found 'fast'"),
    "cooked nan": ("pensieve", "0 1\n1 nan\n", "line 2: the rate must be a number .* 'nan'"),
    "cooked back": ("pensieve", "3 1\n1 2\n", "line 2: the time must rise .* 1 s after 3 s"),
    "cooked twice": ("pensieve", "3 1\n3 2\n", "line 2: the time must rise by at least 1 ms"),
    "cooked still": ("pensieve", "0 0\n1 0\n", "lines 1 to 2: the rate must be above 0 somewhere"),
    "cooked negative": ("pensieve", "0 -1\n", "line 1: expected a time and a rate, found no row"),
    "cooked epoch": ("pensieve", "0 1\n99999999 1\n", "must last at most 1e.07 s, found 199999998"),
    "puffer fast": ("puffer", "0 200000\n1 1\n", r"rates must be at most 1e\+06 Mbit/s, found 160"),
    "ghent empty": ("ghent", "", "line 1: expected epoch uptime_ms .* found an empty file"),
    "ghent cut": ("ghent", "1453121790686 39287 51.0", "line 1: expected 6 columns .* found 3 in"),
    "ghent bytes": ("ghent", "1453121790686 1 51 3 -5 1000", "line 1: bytes must be .* found '-5'"),
    "ghent no time": ("ghent", "1453121790686 1 51 3 5 0000", "line 1: interval_ms must be .*'000"),
    "ghent place": ("ghent", "1453121790686 1 91 3 5 1", "line 1: latitude must be a number"),
    "ghent back": (
        "ghent",
        "1453121790686 9 51 3 5 1\n1453121790686 8 51 3 5 1",
        "line 2: uptime_ms must increase, found 8 after 9",
    ),
    "ucc empty": ("ucc", "", "line 1: expected a header with the columns Timestamp, DL_bitrate"),
    "ucc header": ("ucc", "Timestamp,State\n", "line 1: expected .* DL_bitrate, found 'Timestamp,"),
    "ucc no rows": ("ucc", UCC_HEADER, "lines 2 to 1: expected rows with State D or VD"),
    "ucc time": ("ucc", ucc(ucc_row("2020-02-14", 1)), "line 2: Timestamp must be YYYY.* '2020-02"),
    "ucc state": ("ucc", ucc(ucc_row("2020.02.14_09.38.22", 1, "X")), "line 2: State must be one"),
    "ucc rate": ("ucc", ucc(ucc_row("2020.02.14_09.38.22", "x")), "line 2: DL_bitrate must be"),
    "ucc cut": ("ucc", UCC_HEADER + "2020.02.14_09.38.22,-8.5", "line 2: expected 26 fields"),
    "ucc back": (
        "ucc",
        ucc(ucc_row("2020.02.14_09.38.22", 1), ucc_row("2020.02.14_09.38.20", 1)),
        "line 3: Timestamp must not go backwards, found 2020.02.14_09.38.20, 2 s earlier",
    ),
    "csv header": ("csv", "time,down\n", "line 1: expected a header with the columns time_s, down"),
    "csv no rows": ("csv", "time_s,downlink_mbps\n", "line 1: expected at least one row below"),
    "csv negative": ("csv", "time_s,downlink_mbps\n0,-1\n", "line 2: downlink_mbps must be .*'-1'"),
    "csv back": ("csv", "time_s,downlink_mbps\n1,1\n0,1\n", "line 3: time_s must rise .* 0 s"),
    "csv half": (
        "csv",
        "time_s,downlink_mbps,uplink_mbps\n0,1,1\n1,1,\n",
        "line 3: uplink_mbps must be a number .* found nothing",
    ),
    "csv quote": ("csv", 'time_s,downlink_mbps\n0,"1\n', "line 2: expected CSV, found damage"),
    "csv byte": ("csv", "time_s,downlink_mbps\n0,1\x00\n", "line 2: downlink_mbps must be .*x00"),
    "not text": ("pensieve", b"0 1\n1 \xff\n", "line 2: expected UTF-8 text, found other bytes"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), WRONG.values(), ids=WRONG)
def test_broken_file_is_refused_with_its_name_and_place(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=r"(mine\.dat|drive\.down).*" + message):
        load(tmp_path, name, content)


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.log: the file cannot be read: No such file"):
        import_files("ghent", [tmp_path / "none.log"])


def test_a_log_as_the_app_writes_it_has_tabs_at_the_end_of_rows_and_may_lack_a_state(
    tmp_path: Path,
) -> None:
    header = "Timestamp\tLongitude\tLatitude\tOperatorname\tNetworkTech\tLevel\tDL_bitrate\tTA"
    rows = [
        f"2025.07.18_22.11.0{n}\t-17.43\t14.66\tX\t4G\t-8{n}\t{1000 * n}\t0\t" for n in (1, 2, 3)
    ]
    (recording,) = load(tmp_path, "ucc", "\n".join([header, *rows]) + "\n")
    assert mbps(back(tmp_path, recording).downlink) == [1, 2, 3]
    assert recording.notes == (
        "the log has no State: all of its seconds are taken for those of a download",
    )
    rows[1] += "7\t"
    with pytest.raises(ValueError, match=r"line 3: expected 8 fields .* found 10 in"):
        load(tmp_path, "ucc", "\n".join([header, *rows]) + "\n")


@pytest.mark.skipif(
    not CASES.is_dir(), reason="the files of the cases are not beside this checkout"
)
def test_the_files_that_new_users_brought_are_read_or_refused_in_words() -> None:
    (rates,) = import_files("rates", [CASES / "rate-with-unit.csv"])
    assert mbps(rates.downlink) == [0.57, 0, 12.4, 0.98]
    (cooked,) = import_files("pensieve", [CASES / "throughput-ms-kbps.txt"])
    assert "milliseconds and kbit/s?" in cooked.notes[0]
    with pytest.raises(ValueError, match=r"line 1: expected a header .* without DL_bitrate$"):
        import_files("ucc", [CASES / "gnettrack-tabs-no-bitrate.txt"])
