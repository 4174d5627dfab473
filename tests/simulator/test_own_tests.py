"""Devices keep a part of their data from training, and the last model is tested on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from analysis.metrics.study import study_of
from analysis.report.table import study_table
from analysis.runs.load import Run, load_run
from simulator.config.experiment import ConfigError, load_experiment
from simulator.world.build import build_world
from tests.command_line import fedclock
from tests.simulator.test_command import REAL
from tests.torture import long

SHARE = {"every": 1, "examples": 40, "own_share": 0.25}
STRATEGIES = {"fedlora": {"kind": "fedlora", "rank": 2}, "own": {"kind": "fedsa-lora", "rank": 2}}


def write(folder: Path, **changed: Any) -> Path:
    file = folder / "own.yaml"
    config = {**REAL, "evaluation": SHARE, "strategies": STRATEGIES, **changed}
    file.write_text(yaml.safe_dump(config), "utf-8")
    return file


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("own")
    run(home, workers=1)
    return home


def run(folder: Path, *arguments: str, workers: int) -> None:
    command = ("run", write(folder), "--workers", str(workers), "--no-cache", *arguments)
    done = fedclock(*command, cwd=folder)
    assert done.returncode == 0, done.stderr


def runs_in(home: Path) -> dict[str, Run]:
    found = [load_run(file.parent) for file in home.rglob("manifest.json")]
    return {run.label: run for run in sorted(found, key=lambda run: run.label)}


def test_what_is_kept_for_tests_is_not_trained_on(home: Path) -> None:
    file = write(home)
    split, whole = (
        build_world(load_experiment(file, [value])[0], str(file))
        for value in ("evaluation.own_share=0.25", "evaluation.own_share=0")
    )
    assert split.conditions_hash != whole.conditions_hash
    for device, own in enumerate(split.own_tests):
        shard = whole.fleet.shards[device]
        assert len(own) == round(0.25 * len(shard))
        assert sorted([*split.fleet.shards[device], *own]) == shard.tolist()
    tested = runs_in(home)["fedlora"]
    assert tested.devices["num_examples"].tolist() == split.fleet.num_examples.tolist()


def test_every_device_is_tested_by_every_metric_on_what_it_kept(home: Path) -> None:
    for run in runs_in(home).values():
        for name in ("accuracy", "loss", "macro_f1", "matthews"):
            values = run.devices[f"own_{name}"].to_numpy()
            assert len(values) == 5
            assert np.isfinite(values).all(), name
        assert run.devices["own_loss"].nunique() == 5


def test_the_table_has_the_mean_and_the_worst_tenth_of_the_devices(home: Path) -> None:
    runs = list(runs_in(home).values())
    study = study_of(runs)
    titles = [row.title for row in study_table(study).rows]
    shown = [title for title in titles if "own test data" in title]
    assert len(shown) == 3
    for run in runs:
        mean = study.run_row(run)["own_accuracy_mean"]
        assert mean == pytest.approx(run.devices["own_accuracy"].mean())


@long
def test_workers_that_share_the_tests_come_to_the_same_numbers(home: Path, tmp_path: Path) -> None:
    run(tmp_path, "--only", "own", workers=2)
    assert runs_in(tmp_path)["own"].devices.equals(runs_in(home)["own"].devices)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"shards": {"kind": "drawn", "examples": 20}}, "own_share must be 0 with shards.kind dra"),
        ({"evaluation": {**SHARE, "own_share": 1.0}}, "own_share"),
        ({"evaluation": {**SHARE, "own_share": 1e-9}}, "at least one device an example"),
    ],
)
def test_a_share_that_cannot_be_is_refused(
    tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    file = write(tmp_path, **changed)
    with pytest.raises(ConfigError) as error:
        build_world(load_experiment(file)[0], str(file))
    assert words in str(error.value)
