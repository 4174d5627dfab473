"""Every command is silent but for results with -q, and says what it does with -v."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from analysis.commands.main import app
from tests.command_line import fedclock
from tests.simulator.test_experiment import VALID, write
from tests.torture import long


def call(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "analysis", *map(str, arguments)]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=240, check=False)


def test_every_command_takes_both_options() -> None:
    group = get_command(app)
    commands = dict(vars(group)["commands"])
    for name in ("runs", "traces"):
        commands |= vars(commands.pop(name))["commands"]
    assert len(commands) > 20
    for name, command in commands.items():
        options = {option for one in command.params for option in one.opts}
        assert {"-q", "--quiet", "-v", "--verbose"} <= options, name


@long
def test_quiet_prints_results_alone_and_verbose_what_is_read(tmp_path: Path) -> None:
    file = write(tmp_path, {**VALID, "stop": {"rounds": 1}})
    quiet = call("run", file, "-q", cwd=tmp_path)
    (folder,) = quiet.stdout.splitlines()
    assert (tmp_path / folder / "rounds.parquet").exists()
    assert quiet.stderr == ""
    plain = call("summary", "runs/small", cwd=tmp_path)
    verbose = call("summary", "runs/small", "-v", cwd=tmp_path)
    assert verbose.stdout == plain.stdout
    assert f"read run {folder}" in verbose.stderr
    assert "baseline fedlora" in verbose.stderr
    assert plain.stderr == ""


def test_quiet_keeps_errors() -> None:
    done = CliRunner().invoke(app, ["validate", "no-such.yaml", "-q"])
    assert done.exit_code == 2


@pytest.mark.parametrize("command", [["list", "mixes"], ["explain", "seed"]])
def test_quiet_and_verbose_exclude_each_other(command: list[str]) -> None:
    assert CliRunner().invoke(app, command).exit_code == 0
    assert CliRunner().invoke(app, [*command, "-q", "-v"]).exit_code != 0


@pytest.mark.parametrize(
    ("given", "option", "command"),
    [
        (["-q", "run", "x.yaml"], "-q", "run"),
        (["--seeds", "1,2", "sweep", "x.yaml"], "--seeds", "sweep"),
    ],
)
def test_an_option_before_its_command_is_told_where_it_belongs(
    given: list[str], option: str, command: str
) -> None:
    done = fedclock(*given, cwd=Path())
    assert done.returncode == 2
    assert f"{option} must follow the command, got it before {command}" in done.stderr
    assert f"write: fedclock {command} {option}" in done.stderr


def test_an_option_that_no_command_has_is_refused_as_before() -> None:
    done = fedclock("--nonsense", "run", "x.yaml", cwd=Path())
    assert done.returncode == 2
    assert re.search("No such option:? '?--nonsense", done.stderr)  # as click or typer puts it
