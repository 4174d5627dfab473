"""Run folders that others hand over: nothing outside is read or written, and no loss is silent."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import fedclock
from analysis.runs.files import RunError
from analysis.runs.load import load_run
from simulator.config.experiment import load_experiment
from simulator.log.manifest import RunFolderError, read_manifest
from simulator.runs.run import prepare
from tests.simulator.test_bad_input import simulate
from tests.simulator.test_experiment import VALID


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    (folder / "x.yaml").write_text(yaml.safe_dump(VALID), "utf-8")
    (run,) = simulate(folder / "x.yaml", folder / "runs")
    return run


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "run")
    return tmp_path / "run"


FILES = ("config.yaml", "events.jsonl", "devices.parquet", "rounds.parquet", "clients.parquet")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_link_or_a_pipe_in_a_run_folder_is_neither_read_nor_written_through(
    run: Path, tmp_path: Path, name: str, kind: str
) -> None:
    outside = tmp_path / "outside"
    shutil.move(run / name, outside)
    content = outside.read_bytes()
    if kind == "link":
        os.symlink(outside, run / name)
    else:
        os.mkfifo(run / name)
    with pytest.raises(RunError, match="must be a regular file"):
        load_run(run)
    if name != "config.yaml":
        manifest = json.loads((run / "manifest.json").read_text("utf-8"))
        (run / "manifest.json").write_text(json.dumps({**manifest, "status": "failed"}))
        from simulator.log.run_folder import RunFolder

        config = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
        with pytest.raises(RunFolderError, match="must hold its files itself"):
            RunFolder(run, config, {})
    assert outside.read_bytes() == content


@pytest.mark.parametrize("key", ["label", "experiment", "conditions_hash"])
@pytest.mark.parametrize(
    "value", ["\x1b[31mred", "a\nb", "[bold]x", "a|b", "\\input{x}", "<b>", ""]
)
def test_a_name_in_a_manifest_is_held_to_what_a_config_may_name(
    run: Path, key: str, value: str
) -> None:
    manifest: dict[str, Any] = json.loads((run / "manifest.json").read_text("utf-8"))
    (run / "manifest.json").write_text(json.dumps({**manifest, key: value}), "utf-8")
    with pytest.raises(RunError, match=f"{key} must be a name") as error:
        load_run(run)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", FILES[1:])
@pytest.mark.parametrize("how", ["gone", "flipped"])
def test_a_finished_run_that_lost_a_file_is_run_again_and_said(
    sound: Path, tmp_path: Path, name: str, how: str
) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(sound.parents[1], folder)
    lost = folder / sound.relative_to(sound.parents[1]) / name
    whole = lost.read_bytes()
    if how == "gone":
        lost.unlink()
    else:
        lost.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    file = sound.parents[2] / "x.yaml"
    (config,) = load_experiment(file)
    prepared = prepare(config, lost.parent, str(file))
    assert not prepared.is_finished
    assert any(name in note and "is run again" in note for note in prepared.notes)
    simulate(file, folder)
    assert read_manifest(lost.parent)["status"] == "done"
    if name == "events.jsonl":
        assert lost.read_bytes() == whole


def test_a_run_that_load_leaves_out_is_a_warning(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "other")
    (tmp_path / "other" / "rounds.parquet").unlink()
    with pytest.warns(UserWarning, match=r"left out: .*lacks rounds\.parquet"):
        fedclock.load(run, tmp_path / "other")
