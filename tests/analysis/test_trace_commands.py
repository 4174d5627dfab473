"""``fedclock traces`` prints and writes what its commands promise."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.traces.files import IMPORTS, load, read_parquet
from tests.analysis.trace_commands import refused, traces
from tests.command_line import fedclock
from tests.traces.trace_files import FILES, sample, write
from traces.availability import AvailabilityTrace, availability_text
from traces.formats import read_link
from traces.importers import FORMATS, Availability, Recording

TRACES = Path(__file__).parents[2] / "../shared/traces"
DAY_S = 86400.0


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter an empty folder, with a terminal of 120 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "shown"),
    [("\x1b[31mred", r"\x1b[31mred"), ("a\nb", r"a\nb"), ("[bold]x", "[bold]x"),
     ("x\u202ey", r"x\u202ey"), ("\udcff", r"\udcff")],
)  # fmt: skip
def test_names_of_traces_reach_the_terminal_as_they_stand(
    home: Path, name: str, shown: str
) -> None:
    texts = {
        "link": "time_s,downlink_mbps,uplink_mbps\n0,1,1\n1,1,1\n",
        "online": "device_id,start_s,end_s,state\na,0,10,online\na,10,20,offline\n",
        "table": f'device_id,"{"" if ord(name[-1]) > 255 else name}"\n1,2\n',
    }
    for kind, text in texts.items():
        path = home / f"{kind}{name}.csv"
        path.write_text(text, "utf-8")
        said = traces("show", path).output
        assert f"{kind}{shown}" in said, said
        assert not set("\x1b\u202e\udcff") & set(said)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_command_line_says_what_is_wrong_with_exit_code_2(home: Path) -> None:
    write(home, "mine.log", FILES["hsdpa"])
    done = fedclock("traces", "import", "ghent", "mine.log", cwd=home)
    assert done.returncode == 2
    assert re.match(r"error: mine\.log, line 1: epoch in ms must be a number", done.stderr)
    assert done.stderr.endswith("The file looks like the format hsdpa\n")
    assert list(contents(home)) == ["mine.log"]


def test_imported_link_is_one_that_a_config_can_name(home: Path) -> None:
    sample(home, "ucc")
    result = traces("import", "ucc", "sample.dat", "--uplink-scale", "0.5")
    assert "imported/sample.csv: a link of 3 s, mean 4.00 Mbit/s down, 2.00 up" in result.output
    link = read_link("imported/sample.csv")
    assert link.downlink.rate_bytes_per_s.tolist() == [1e6, 5e5, 0]
    assert link.uplink.rate_bytes_per_s.tolist() == [5e5, 2.5e5, 0]


def test_unmeasured_uplink_is_said_and_left_empty(home: Path) -> None:
    sample(home, "ucc")
    assert "uplink was not measured: give uplink_scale" in traces(
        "import", "ucc", "sample.dat"
    ).output.replace("\n", " ")
    assert Path("imported/sample.csv").read_text().splitlines()[1] == "0,8,"


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_imported_and_shown(home: Path, name: str) -> None:
    path = sample(home, name)
    traces("import", name, path)
    result = traces("show", "imported")
    heading = {"link": "Links", "availability": "Availability", "devices": r"devices?\)"}
    assert re.search(heading[FORMATS[name].gives.split()[0]], result.output)


def test_one_broken_file_leaves_no_file_of_the_others(home: Path) -> None:
    write(home, "good.log", FILES["ghent"])
    write(home, "bad.log", FILES["ghent"][:-9])
    assert "bad.log, line 3: expected 6 columns" in refused(
        "import", "ghent", "good.log", "bad.log"
    )
    assert list(contents(home)) == ["bad.log", "good.log"]
    assert not Path("imported").exists()


def test_import_keeps_what_is_there_unless_forced(home: Path) -> None:
    sample(home, "pensieve")
    Path("imported").mkdir()
    write(home / "imported", "sample.csv", "precious")
    write(home / "imported", "other.csv", "untouched")
    assert refused("import", "pensieve", "sample.dat") == (
        "imported already holds sample.csv; --force overwrites them"
    )
    assert Path("imported/sample.csv").read_text() == "precious"
    traces("import", "pensieve", "sample.dat", "--force")
    assert read_link("imported/sample.csv", uplink_scale=1).downlink.period_s == 10
    assert Path("imported/other.csv").read_text() == "untouched"
    assert sorted(contents(home)) == ["imported/other.csv", "imported/sample.csv", "sample.dat"]


def test_import_never_overwrites_what_it_reads(home: Path) -> None:
    write(home, "mine.csv", FILES["csv"])
    message = refused("import", "csv", "mine.csv", "--output", ".", "--force")
    assert message.startswith("an import must not overwrite what it reads, got mine.csv")
    assert contents(home) == {"mine.csv": FILES["csv"]}


def test_folder_that_cannot_be_written_is_named(home: Path) -> None:
    sample(home, "pensieve")
    write(home, "taken", "a file")
    assert "the files cannot be written to" in refused(
        "import", "pensieve", "sample.dat", "--output", "taken"
    )
    assert sorted(contents(home)) == ["sample.dat", "taken"]


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf"])
def test_uplink_scale_that_makes_no_link_is_refused(home: Path, scale: str) -> None:
    sample(home, "ucc")
    message = refused("import", "ucc", "sample.dat", "--uplink-scale", scale)
    assert message.startswith("--uplink-scale must be a number above 0, got")


def test_unknown_format_lists_the_known() -> None:
    message = refused("import", "oboe", "x")
    assert message == f"the format must be one of {', '.join(IMPORTS)}, got 'oboe'"


def test_help_names_every_format() -> None:
    words = traces("import", "--help").output
    assert all(name in words for name in IMPORTS)


def parquet(folder: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), folder / "mine.parquet")
    return folder / "mine.parquet"


def test_parquet_link_is_read_by_column_name(home: Path) -> None:
    path = parquet(home, downlink_mbps=[8, 16], other=["a", None], time_s=[3.0, 5.0])
    traces("import", "parquet", path)
    link = read_link("imported/mine.csv", uplink_scale=1)
    assert link.downlink.time_s.tolist() == [0, 2]
    assert link.downlink.rate_bytes_per_s.tolist() == [1e6, 2e6]


def test_parquet_availability_is_read_by_column_name(home: Path) -> None:
    path = parquet(home, device_id=[1, 1], start_s=[0, 5], end_s=[2.5, 6], state=["online"] * 2)
    result = read_parquet(path)
    assert isinstance(result, Availability)
    assert result.devices["1"].fraction_online == 3.5 / 6


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"time_s": [0, 1], "downlink_mbps": [1.0, None]},
            "row 2: downlink_mbps must be .*nothing",
        ),
        ({"time_s": [0, 1], "downlink_mbps": [1.0, -1]}, "row 2: downlink_mbps must be .*'-1.0'"),
        ({"time_s": [1, 0], "downlink_mbps": [1, 1]}, "row 2: time_s must rise .* 0 s after 1"),
        ({"time_s": [0], "rate": [1]}, "expected a header with the columns time_s, downlink_mbps"),
        ({"time_s": [], "downlink_mbps": []}, "expected at least one row below, found none"),
    ],
)
def test_wrong_parquet_is_refused_with_its_row(
    home: Path, columns: dict[str, object], message: str
) -> None:
    parquet(home, **columns)
    assert re.match(r"mine\.parquet.*" + message, refused("import", "parquet", "mine.parquet"))


def test_damaged_parquet_is_refused_or_read_and_never_more(home: Path) -> None:
    path = parquet(home, time_s=[0, 1, 2], downlink_mbps=[1.0, 2.0, 3.0])
    content = path.read_bytes()
    rng = np.random.default_rng(5)
    refusals = 0
    for _ in range(2000):
        damaged = bytearray(content[: rng.integers(0, len(content) + 1)])
        if rng.random() < 0.7:
            damaged = bytearray(content)
            for at in rng.integers(0, len(content), rng.integers(1, 4)):
                damaged[at] = rng.integers(256)
        with path.open("r+b") as file:  # emptying the file first would flush it to disk each time
            file.write(damaged)
            file.truncate()
        try:
            read_parquet(path)
        except ValueError as error:
            assert "mine.parquet" in str(error)  # noqa: PT017
            refusals += 1
    assert refusals > 500


def test_link_named_as_parquet_is_recognized(home: Path) -> None:
    sample(home, "csv")
    message = refused("import", "parquet", "sample.dat")
    assert message.startswith("sample.dat: expected a Parquet file, found damage")
    assert message.endswith("The file looks like the format csv")


def test_show_reads_bundled_links_and_pools_by_name() -> None:
    output = traces("show", "lte-driving", "wifi-1").output
    assert all(f"lte-driving-{n}" in output for n in (1, 2, 3, 4))
    assert "wifi-1" in output
    assert "wifi-2" not in output


def test_show_prints_the_statistics_of_a_link(home: Path) -> None:
    rows = "".join(f"{n},{8 if n % 2 else 0},\n" for n in range(10))
    write(home, "square.csv", "time_s,downlink_mbps,uplink_mbps\n" + rows)
    output = traces("show", "square.csv").output
    line = next(line for line in output.splitlines() if "square" in line)
    # mean 4, quantiles 0, 0 and 8, half the time in outage, CV 1, opposed to itself 5 s later
    assert line.split() == ["square", "down", "10", "s", "4.00", "0", "0", "8.00", "50.0", "%",
                            "1.00", "-1.00"]  # fmt: skip
    assert "not measured" in output


def test_show_prints_the_statistics_of_availability(home: Path) -> None:
    half = AvailabilityTrace.of([(0, 43200)], DAY_S)
    never = AvailabilityTrace.of([], DAY_S)
    write(home, "phones.csv", availability_text({"a": half, "b": never}))
    line = next(n for n in traces("show", "phones.csv").output.splitlines() if "phones" in n)
    assert line.split() == ["phones", "2", "24", "h", "25.0", "%", "2–48", "%", *["12", "h"] * 4]


def test_show_refuses_what_is_no_trace(home: Path) -> None:
    message = refused("show", "lte-drivin")
    assert message.startswith(
        "a trace must be a CSV or TOML file, a folder of them, or one of 3g, 5g"
    )
    assert message.endswith("got 'lte-drivin'; did you mean lte-driving?")
    write(home, "raw.log", FILES["ghent"])
    assert "a file of another format must be imported first" in refused("show", "raw.log")
    write(home, "cut.csv", "time_s,downlink_mbps,uplink_mbps\n0,1,1\n1,1")
    assert refused("show", "cut.csv").startswith("cut.csv, line 3: expected 3 fields")


@pytest.mark.skipif(
    not TRACES.is_dir(), reason="the real recordings do not stand beside this checkout"
)
def test_real_recordings_are_imported_as_they_are_and_shown(home: Path) -> None:
    files = sorted(TRACES.glob("bandwidth/fcc/*.csv"))[:5]
    traces("import", "csv", *files)
    for file in files:
        real, ours = (
            read_link(path, uplink_scale=1) for path in (file, Path("imported") / file.name)
        )
        assert ours.downlink.rate_bytes_per_s == pytest.approx(real.downlink.rate_bytes_per_s)
        assert ours.downlink.period_s == real.downlink.period_s
    loaded = load([str(path) for path in files])
    assert all(isinstance(link, Recording) and link.uplink is None for link in
               loaded.links.values())  # fmt: skip
    assert files[0].stem in traces("show", files[0]).output


def test_a_small_parquet_file_of_a_huge_table_is_refused_before_it_is_read(home: Path) -> None:
    at_s = pa.repeat(pa.scalar(1.0), 20_000_000)
    path = parquet(home, time_s=at_s, downlink_mbps=at_s)
    assert path.stat().st_size < 1_000_000
    assert re.match(
        r"mine\.parquet: expected at most 10,000,000 rows times columns .* found 20,000,000 rows",
        refused("import", "parquet", "mine.parquet"),
    )


def test_a_parquet_text_that_is_too_long_or_a_list_is_refused(home: Path) -> None:
    parquet(home, device_id=["x" * 5000] * 9, start_s=[0] * 9, end_s=[1] * 9, state=["online"] * 9)
    assert "texts of at most 1000 characters, found 5000" in refused(
        "import", "parquet", "mine.parquet"
    )
    parquet(home, time_s=[[0], [1]], downlink_mbps=[1, 1])
    assert "found lists or records in 'time_s'" in refused("import", "parquet", "mine.parquet")


def test_unlikely_units_are_said_on_import_and_by_show(home: Path) -> None:
    rows = "".join(f"{500 * k} {2600 + 10 * k}\n" for k in range(300))
    write(home, "mine.txt", rows)
    words = "41.7 h: milliseconds and kbit/s? If so, import it as csv under the header"
    for said in (traces("import", "pensieve", "mine.txt"), traces("show", "imported/mine.csv")):
        assert words in said.output
    assert "?" not in traces("show", "lte-driving").output
