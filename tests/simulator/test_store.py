"""These tests check the run folder on disk."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from simulator.engine.server import simulate
from simulator.log.manifest import RunFolderError, is_finished, read_manifest
from simulator.log.records import Event
from simulator.log.run_folder import RunFolder
from tests.simulator.small import DriftTrainer, Memory, make_device, make_federation

CONFIG = {"strategy": {"kind": "fedlora", "rank": 8}, "seed": 0}


def open_folder(path: Path) -> RunFolder:
    return RunFolder(path, CONFIG, {"label": "a"})


def test_tables_hold_one_row_a_record_with_its_types(tmp_path: Path) -> None:
    folder, memory = open_folder(tmp_path / "run"), Memory()
    federation = make_federation([make_device(0), make_device(1)], trainer=DriftTrainer())
    simulate(federation, folder)
    simulate(make_federation([make_device(0), make_device(1)], trainer=DriftTrainer()), memory)
    folder.close("done", {"num_rounds": 2})
    rounds = pq.read_table(tmp_path / "run" / "rounds.parquet").to_pylist()
    clients = pq.read_table(tmp_path / "run" / "clients.parquet").to_pylist()
    assert [row["closed_s"] for row in rounds] == [r.closed_s for r in memory.rounds]
    assert [row["peak_memory_bytes"] for row in clients] == [
        r.peak_memory_bytes for r in memory.clients
    ]
    lines = (tmp_path / "run" / "events.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["event"] for line in lines] == [e.name for e in memory.events]


def test_the_manifest_says_how_the_run_stands(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "run")
    assert read_manifest(tmp_path / "run")["status"] == "running"
    folder.close("done", {"num_rounds": 7})
    manifest = read_manifest(tmp_path / "run")
    assert (manifest["status"], manifest["num_rounds"], manifest["label"]) == ("done", 7, "a")
    assert read_manifest(tmp_path / "none") == {}


def test_what_nobody_measured_is_null_in_the_log(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "run")
    folder.event(Event(1.5, "evaluated", 0, None, {"accuracy": math.nan}))
    folder.close("done", {})
    line = json.loads((tmp_path / "run" / "events.jsonl").read_text("utf-8"))
    expected = {"at_s": 1.5, "event": "evaluated", "round": 0, "device": None, "accuracy": None}
    assert line == expected


def test_a_folder_of_another_config_is_refused_and_says_what_differs(tmp_path: Path) -> None:
    open_folder(tmp_path / "run").close("done", {})
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    other = {"strategy": {"kind": "fedlora", "rank": 4}, "seed": 0}
    with pytest.raises(RunFolderError, match=r"differs in strategy\.rank: 8 there, 4 here"):
        RunFolder(tmp_path / "run", other, {})
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", "utf-8")
    with pytest.raises(RunFolderError, match="must be empty or hold a run"):
        open_folder(tmp_path)
    with pytest.raises(RunFolderError, match="must be a directory, got the file"):
        open_folder(tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text, "utf-8")
    with pytest.raises(RunFolderError, match=r"manifest\.json .*is damaged"):
        read_manifest(tmp_path)


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: [", "utf-8")
    with pytest.raises(RunFolderError, match=r"config\.yaml cannot be read"):
        open_folder(tmp_path)


def test_a_second_process_is_told_that_the_folder_is_taken(tmp_path: Path) -> None:
    first = open_folder(tmp_path / "run")
    first.event(Event(1.0, "aggregated", 1))
    with pytest.raises(RunFolderError, match="one process at a time"):
        open_folder(tmp_path / "run")
    first.close("done", {})
    assert (tmp_path / "run" / "events.jsonl").read_text("utf-8").count("aggregated") == 1


def test_a_finished_run_of_other_inputs_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", CONFIG, {"conditions_hash": "one", "data": {"n": 1}})
    assert not is_finished(tmp_path / "run", {})
    folder.close("done", {})
    assert is_finished(tmp_path / "run", {"conditions_hash": "one", "data": {"n": 1}})
    with pytest.raises(RunFolderError, match="but conditions_hash differ now"):
        is_finished(tmp_path / "run", {"conditions_hash": "two", "data": {"n": 1}})


def test_done_leaves_no_checkpoint_and_interrupted_keeps_it(tmp_path: Path) -> None:
    for status, kept in (("interrupted", True), ("done", False)):
        folder = open_folder(tmp_path / "run")
        folder.checkpoint.mkdir(exist_ok=True)
        (folder.checkpoint / "x.safetensors").write_bytes(b"")
        folder.close(status, {})  # type: ignore[arg-type]
        assert folder.checkpoint.exists() is kept
