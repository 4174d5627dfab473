"""Each config of ``fedclock init`` is valid as it is written, says what it is for, and runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from analysis.commands.init import PURPOSES
from simulator.config.reference import explained
from tests.command_line import fedclock
from tests.simulator.own_data import write_data


def written(purpose: str, cwd: Path) -> str:
    done = fedclock("init", purpose, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert f"fedclock validate {purpose}.yaml" in done.stdout
    return (cwd / f"{purpose}.yaml").read_text("utf-8")


@pytest.mark.parametrize("purpose", PURPOSES)
def test_the_config_of_each_purpose_is_valid_and_runs(purpose: str, tmp_path: Path) -> None:
    written(purpose, tmp_path)
    if purpose == "own-data":  # the config's first lines ask for this folder
        write_data(tmp_path / "my-data")
    small = ("--set", "task.model=tiny")
    checked = fedclock("validate", f"{purpose}.yaml", *small, cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    timing = ("--set", "training=none", "--set", "stop.rounds=2")
    done = fedclock("run", f"{purpose}.yaml", *small, *timing, "--no-cache", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("purpose", PURPOSES)
def test_the_commands_in_a_config_name_its_own_file_and_folder(
    purpose: str, tmp_path: Path
) -> None:
    text = written(purpose, tmp_path)
    commands = re.findall(r"^#   (fedclock .*)$", text, flags=re.MULTILINE)
    assert any(f" {purpose}.yaml" in command for command in commands)
    assert "{file}" not in text
    assert text.count(f"{purpose}.yaml") == sum(f"{purpose}.yaml" in one for one in commands)
    folders = {name for command in commands for name in re.findall(r"runs/([a-z-]+)", command)}
    assert folders <= {purpose}
    assert f"\nname: {purpose}" in text
    assert all(explained(key) for key in re.findall(r"^ *# ([a-z_]+): [{]", text, re.MULTILINE))


def test_a_file_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "my-link.csv").write_text("mine", "utf-8")
    done = fedclock("init", "trace-replay", cwd=tmp_path)
    assert done.returncode == 2
    assert "my-link.csv is there" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["my-link.csv"]


def test_a_config_goes_where_it_is_asked_to(tmp_path: Path) -> None:
    done = fedclock("init", "trace-replay", "-o", "a/b.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["b.yaml", "my-link.csv"]
    assert "fedclock compare a/b.yaml" in (tmp_path / "a" / "b.yaml").read_text("utf-8")


def test_a_purpose_that_is_none_is_refused_with_those_there_are(tmp_path: Path) -> None:
    done = fedclock("init", "comapre", cwd=tmp_path)
    assert done.returncode == 2
    assert "compare" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_next_step_is_one_that_can_be_taken(tmp_path: Path) -> None:
    said = fedclock("init", "own-data", cwd=tmp_path).stdout
    assert "Next: put train.csv and test.csv (text, label) into my-data, then fedclock" in said
    said = fedclock("init", "compare", cwd=tmp_path).stdout
    assert "Next: fedclock validate compare.yaml" in said
