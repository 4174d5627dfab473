"""Titles and places of a config reach every reader, and change without simulating again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.runs.files import RunError
from analysis.runs.frames import open_runs
from analysis.runs.load import load_run
from simulator.config.experiment import ConfigError, load_experiment, read_experiment
from simulator.log.run_folder import refresh
from simulator.runs.sweep import expand
from tests.simulator.test_command import SMALL, fedclock, logs, write
from tests.torture import long

TITLED: dict[str, Any] = {
    **SMALL,
    "title": "Five devices",
    "strategies": {
        "zeropad": {"kind": "zeropad", "rank": 2},
        "mine": {"kind": "fedquad", "rank": 2, "title": "FedQuad & $friends$ #1"},
        "fedlora": {"kind": "fedlora", "rank": 2},
    },
}


@pytest.fixture
def folder(folders: list[Path], tmp_path: Path) -> Path:
    """Return a copy of a finished run's folder, which a test may change."""
    return shutil.copytree(folders[0], tmp_path / folders[0].name)


def summary(folder: Path, *options: str) -> str:
    done = fedclock("summary", folder, *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return (folder / "summary" / "table.md").read_text("utf-8").splitlines()[0]


def test_titles_enter_no_hash() -> None:
    plain = {**TITLED, "strategies": {k: {"kind": v["kind"], "rank": 2} for k, v in
                                      TITLED["strategies"].items()}}  # fmt: skip
    del plain["title"]
    with_titles, without = (read_experiment(c, [], Path("x")) for c in (TITLED, plain))
    assert [one.hash for one in with_titles] == [one.hash for one in without]
    assert [one.title for one in with_titles] == ["Five devices"] * 3
    titles = [one.strategy_title for one in with_titles]
    assert titles == [None, "FedQuad & $friends$ #1", None]
    assert [one.place for one in with_titles] == [(), (1,), (2,)]


@pytest.mark.parametrize("title", ["", " x", "a" * 81, "a\nb", 7])
def test_a_title_that_is_none_is_refused_at_its_key(tmp_path: Path, title: object) -> None:
    strategies = {"mine": {"kind": "fedquad", "title": title}}
    file = write(tmp_path, {**SMALL, "strategies": strategies})
    with pytest.raises(ConfigError, match=r"strategies\.mine.title must be") as refused:
        load_experiment(file)
    assert len(refused.value.problems) == 1


@long
def test_titles_change_without_simulating_again(tmp_path: Path) -> None:
    file = write(tmp_path, TITLED)
    assert fedclock("sweep", file, "--seeds", "1", cwd=tmp_path).returncode == 0
    runs = tmp_path / "runs" / "small"
    before = {path: path.stat().st_mtime_ns for path in runs.glob("*/*.parquet")}
    assert summary(runs) == "|  | Zero padding | FedQuad \\& \\$friends\\$ #1 | FedLoRA |"
    strategies = {**TITLED["strategies"], "mine": {"kind": "fedquad", "rank": 2, "title": "Ours"}}
    last_first = dict(reversed(strategies.items()))
    write(tmp_path, {**TITLED, "title": "Renamed", "strategies": last_first, "targets": [0.5]})
    for command in (("sweep", "--seeds", "1"), ("compare",)):
        done = fedclock(command[0], file, *command[1:], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "kept" in done.stdout
        assert summary(runs) == "|  | FedLoRA | Ours | Zero padding |"
        assert open_runs([runs]).variants == ["fedlora", "mine", "zeropad"]
    assert (runs / "report" / "report.md").read_text("utf-8").startswith("# Renamed\n")
    assert {path: path.stat().st_mtime_ns for path in runs.glob("*/*.parquet")} == before
    manifests = [json.loads(path.read_text("utf-8")) for path in runs.glob("*/manifest.json")]
    assert [one["read_alone"]["targets"] for one in manifests] == [[0.5]] * 3


def test_a_manifest_is_left_as_it_is_where_no_title_changed(tmp_path: Path) -> None:
    file = write(tmp_path, TITLED)
    assert fedclock("run", file, cwd=tmp_path).returncode == 0
    found = {path: path.stat().st_ino for path in tmp_path.rglob("manifest.json")}
    assert len(found) == 3
    assert fedclock("run", file, cwd=tmp_path).returncode == 0
    assert {path: path.stat().st_ino for path in tmp_path.rglob("manifest.json")} == found


@pytest.mark.parametrize("wrong", [{"strategy_title": "\x1b[2J"}, {"strategy_title": 3}, ["x"]])
def test_a_title_of_a_foreign_run_folder_is_held_to_the_rule(folder: Path, wrong: object) -> None:
    file = folder / "manifest.json"
    file.write_text(
        json.dumps(json.loads(file.read_text("utf-8")) | {"read_alone": wrong}), "utf-8"
    )
    with pytest.raises(RunError, match=r"manifest\.json is damaged"):
        load_run(folder)


@long
def test_variants_stand_in_config_and_grid_order_and_the_baseline_is_the_configs_own(
    tmp_path: Path,
) -> None:
    strategies = {
        "quad": {"kind": "fedquad", "rank": 2},
        "lora": {"kind": "fedlora", "rank": 4},
        "third": {"kind": "flora", "rank": 3},
    }
    file = write(tmp_path, {**SMALL, "strategies": strategies})
    grid = ("--grid", "strategy.rank=8,4,2", "--seeds", "1")
    assert fedclock("sweep", file, *grid, cwd=tmp_path).returncode == 0
    runs = tmp_path / "runs" / "small"
    names = [f"{label} rank={rank}" for label in strategies for rank in (8, 4, 2)]
    assert open_runs([runs]).variants == names
    header = summary(runs)
    assert [cell.strip() for cell in header.split("|")[2:-1]] == names
    differences = pd.read_csv(runs / "summary" / "differences.csv")
    assert "lora rank=4" not in set(differences["variant"])
    assert set(differences["variant"]) == set(names) - {"lora rank=4"}
    assert len(logs(runs)) == 9


def test_places_count_from_the_configs_own_value(tmp_path: Path) -> None:
    file = write(tmp_path, TITLED)
    grid = ["strategy.rank=1,2,4", "fleet.memory_share=0.002,0.003"]
    found = expand(file, [], grid=grid, seeds="1", output=tmp_path)
    places = {(one.label, one.point): one.place for one in found}
    assert places["zeropad", "strategy.rank=1, fleet.memory_share=0.002"] == (0, -1)
    assert places["zeropad", "strategy.rank=2, fleet.memory_share=0.002"] == ()
    assert places["mine", "strategy.rank=4, fleet.memory_share=0.003"] == (1, 1, 1)


def test_runs_that_are_named_one_by_one_keep_that_order(tmp_path: Path) -> None:
    file = write(tmp_path, TITLED)
    assert fedclock("run", file, cwd=tmp_path).returncode == 0
    folders = {path.name.split("-")[0]: path for path in (tmp_path / "runs" / "small").iterdir()}
    asked = [folders[label] for label in ("fedlora", "mine", "zeropad")]
    assert open_runs(asked).variants == ["fedlora", "mine", "zeropad"]
    assert open_runs(asked[::-1]).variants == ["zeropad", "mine", "fedlora"]


def test_refreshing_changes_the_manifest_alone(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    refresh(folder, {"title": "A name", "place": [3]})
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert {name for name in before if before[name] != after[name]} == {"manifest.json"}
    assert before.keys() == after.keys()
