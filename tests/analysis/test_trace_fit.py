"""``fedclock traces fit`` writes a fitted generator, reports it, and refuses unfit input."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from analysis.commands.traces import app
from simulator.config.problems import UserError
from tests.command_line import fedclock
from tests.torture import long
from tests.traces.trace_files import write
from traces.catalog import availability, pool

LINK = "time_s,downlink_mbps,uplink_mbps\n" + "".join(
    f"{k},{8 + 4 * (k // 5 % 3)},{1 + k % 2}\n" for k in range(60)
)
DOWN_ONLY = "time_s,downlink_mbps,uplink_mbps\n0,8,\n1,16,\n2,0,\n"
PHONES = "device_id,start_s,end_s,state\n" + "".join(
    f"{name},{day * 86400 + begin},{day * 86400 + end},{state}\n"
    for name in "ab"
    for day in range(5)
    for begin, end, state in ((0, 21600, "online"), (21600, 86400, "offline"))
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    for name, text in (("link", LINK), ("down", DOWN_ONLY), ("phones", PHONES)):
        write(tmp_path, f"{name}.csv", text)
    return tmp_path


def traces(*arguments: str) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None, result.exception
    return result


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def test_fitted_link_is_written_compared_and_a_pool() -> None:
    result = traces("fit", "link.csv", "-o", "mine.toml")
    assert "Generator: mine.toml" in result.output
    assert "down r(5 s)" in result.output
    assert "up mean (Mbit/s)" in result.output
    members = pool("mine.toml")
    mean = sum(link.downlink.mean_bytes_per_s for link in members) / len(members) * 8 / 1e6
    assert mean == pytest.approx(12, rel=0.1)
    assert Path("mine.toml").read_text().startswith("# Fitted by fedclock traces fit to: link.csv")


def test_fitted_phones_are_written_and_online_at_night() -> None:
    result = traces("fit", "phones.csv", "-o", "mine.toml")
    assert "online at 4 h (%)" in result.output
    for device in availability("mine.toml").values():
        assert device.fraction_online == pytest.approx(0.25, abs=0.02)


def test_uplink_that_was_not_measured_stays_unmeasured() -> None:
    assert "up mean" not in traces("fit", "down.csv", "-o", "mine.toml").output
    assert "not measured" in traces("show", "mine.toml").output
    with pytest.raises(ValueError, match="the uplink was not measured"):
        pool("mine.toml")
    mixed = traces("fit", "down.csv", "link.csv", "-o", "both.toml").output
    assert "up mean" not in mixed


@long
def test_generator_is_shown_and_plotted_with_its_seed() -> None:
    traces("fit", "link.csv", "-o", "link.toml")
    traces("fit", "phones.csv", "-o", "phones.toml")
    first, again, other = (
        traces("show", "link.toml", "phones.toml", "--seed", seed).output for seed in "112"
    )
    assert first == again != other
    assert "link-4" in first
    assert "64" in first
    traces("plot", "link.toml", "phones.toml", "-o", "figures")
    suffixes = {path.suffix for path in Path("figures").iterdir()}
    assert suffixes == {".png", ".pdf", ".svg", ".csv"}
    assert {path.stem for path in Path("figures").iterdir()} == {
        "rate", "distribution", "day", "spans"
    }  # fmt: skip


def test_generator_that_is_there_is_kept_unless_forced() -> None:
    write(Path(), "mine.toml", "precious")
    assert "already holds mine.toml; --force" in refused("fit", "link.csv", "-o", "mine.toml")
    assert Path("mine.toml").read_text() == "precious"
    traces("fit", "link.csv", "-o", "mine.toml", "--force")
    assert Path("mine.toml").read_text() != "precious"


def test_what_cannot_be_fitted_is_refused() -> None:
    assert refused("fit", "link.csv", "phones.csv") == (
        "a fit needs links or availability, one of the two, got both"
    )
    write(Path(), "table.csv", "device_id,speed\na,1\n")
    assert refused("fit", "table.csv").endswith("one of the two, got neither")
    assert "--output must be a TOML file, got x.csv" in refused("fit", "link.csv", "-o", "x.csv")
    assert "a trace must be a CSV or TOML file" in refused("fit", "nowhere.csv")
    write(Path(), "still.csv", "device_id,start_s,end_s,state\na,0,86400,online\n")
    assert "needs a device that goes online and offline" in refused("fit", "still.csv")
    assert not Path("fitted.toml").exists()


def test_broken_file_ends_the_command_with_exit_code_2(home: Path) -> None:
    write(home, "bad.csv", LINK + "60,fast,1\n")
    write(home, "bad.toml", 'kind = "link"\nstep_s = 1.0\n')
    for arguments, message in (
        (["fit", "bad.csv"], "error: bad.csv, line 62: downlink_mbps must be a number"),
        (["show", "bad.toml"], "error: bad.toml: expected the keys step_s, duration_s"),
    ):
        done = fedclock("traces", *arguments, cwd=home)
        assert done.returncode == 2
        assert done.stderr.startswith(message)
    assert not (home / "fitted.toml").exists()
