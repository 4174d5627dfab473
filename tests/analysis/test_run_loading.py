"""Run folders are read back whole, or refused with a message that says what to do."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from analysis.figures import choices
from analysis.metrics.study import study_of
from analysis.runs.differences import settings_that_differ
from analysis.runs.files import RunError, UnfinishedRunError
from analysis.runs.frames import open_runs
from analysis.runs.load import find_runs, load_run

WriteRun = Callable[..., Path]


@pytest.fixture
def folder(write_run: WriteRun, tmp_path: Path) -> Path:
    return write_run(tmp_path, "fedquad", num_rounds=2)


def test_a_run_is_read_back_with_its_label_frames_and_events(folder: Path) -> None:
    run = load_run(folder)
    assert (run.label, run.strategy) == ("fedquad", "fedquad")
    assert list(run.rounds["round"]) == [0, 1, 2]
    assert math.isnan(run.rounds["accuracy"][1])
    assert run.config["fleet"]["memory_share"] == 0.02
    events = list(run.events())
    assert len(events) == len((folder / "events.jsonl").read_text().splitlines())
    assert events[-1]["event"] == "aggregated"


def test_runs_are_found_in_the_folder_above_them(folders: list[Path]) -> None:
    assert find_runs([folders[0].parent]) == sorted(folders)


def test_a_run_that_is_named_twice_is_taken_once(folders: list[Path]) -> None:
    assert find_runs([folders[0], folders[0].parent]) == [
        folders[0],
        *sorted(folders[1:]),
    ]


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"must be a directory, got .*nowhere, which is not there"):
        find_runs([tmp_path / "nowhere"])


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run folder and holds none: no manifest\.json"):
        find_runs([tmp_path])


def test_load_run_wants_the_run_folder_itself(folders: list[Path]) -> None:
    with pytest.raises(RunError, match=r"is not a run folder: it holds no manifest\.json"):
        load_run(folders[0].parent)


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "devices.parquet", "rounds.parquet", "clients.parquet", "events.jsonl"],
)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(RunError, match=f"{folder.name} lacks {name}"):
        load_run(folder)


@pytest.mark.parametrize("name", ["manifest.json", "rounds.parquet", "clients.parquet"])
def test_a_damaged_file_is_named(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(RunError, match=f"{name} is damaged: "):
        load_run(folder)


def test_a_config_that_is_no_mapping_is_damaged(folder: Path) -> None:
    (folder / "config.yaml").write_text("- 1\n")
    with pytest.raises(RunError, match=r"config.yaml is damaged: it must hold a mapping, got list"):
        load_run(folder)


def test_a_config_that_is_no_yaml_is_damaged(folder: Path) -> None:
    (folder / "config.yaml").write_text("a: [1\n")
    with pytest.raises(RunError, match=r"config.yaml is damaged: "):
        load_run(folder)


def test_a_damaged_event_is_named_by_its_line(folder: Path) -> None:
    with (folder / "events.jsonl").open("a") as log:
        log.write('{"at_s": 1.\n')
    number = len((folder / "events.jsonl").read_text().splitlines())
    with pytest.raises(RunError, match=f"events.jsonl: line {number} is not JSON"):
        list(load_run(folder).events())


def test_missing_columns_are_named(folder: Path) -> None:
    rounds = pd.read_parquet(folder / "rounds.parquet")
    rounds.drop(columns=["waiting_s", "energy_j"]).to_parquet(folder / "rounds.parquet")
    with pytest.raises(RunError, match=r"rounds.parquet lacks the columns waiting_s, energy_j"):
        load_run(folder)


def test_a_manifest_without_a_key_is_refused(folder: Path) -> None:
    edit_manifest(folder, "seed")
    with pytest.raises(RunError, match=r"manifest.json lacks seed"):
        load_run(folder)


def test_an_unknown_format_is_refused(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run(tmp_path, "fedlora", num_rounds=1, format=9)
    with pytest.raises(RunError, match="format must be at most 1, got 9; read it with the version"):
        load_run(folder)


@pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
def test_a_run_that_has_not_ended_is_refused(
    write_run: WriteRun, tmp_path: Path, status: str
) -> None:
    folder = write_run(tmp_path, "fedlora", num_rounds=1, status=status)
    (folder / "rounds.parquet").unlink()  # written only when a run closes
    with pytest.raises(UnfinishedRunError, match=rf"status 'done'\), got '{status}'; run its"):
        load_run(folder)


def test_a_failed_run_says_why(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run(tmp_path, "fedlora", num_rounds=1, status="failed", error="KeyError('a')")
    with pytest.raises(UnfinishedRunError, match=r"got 'failed' \(KeyError\('a'\)\); run its"):
        load_run(folder)


def test_unfinished_runs_are_left_out_by_name(write_run: WriteRun, tmp_path: Path) -> None:
    write_run(tmp_path, "fedlora", num_rounds=1)
    write_run(tmp_path, "haflq", num_rounds=1, status="running")
    found = open_runs([tmp_path])
    assert found.variants == ["fedlora"]
    assert len(found.left_out) == 1
    assert "haflq" in found.left_out[0]


def test_no_finished_run_at_all_is_an_error(write_run: WriteRun, tmp_path: Path) -> None:
    write_run(tmp_path, "haflq", num_rounds=1, status="running")
    write_run(tmp_path, "fedquad", num_rounds=1)
    (next(tmp_path.glob("fedquad*")) / "rounds.parquet").unlink()
    with pytest.raises(RunError) as error:
        open_runs([tmp_path])
    first, quad, haflq = str(error.value).splitlines()  # a line for each
    assert first == "at least one run must have ended; got none"
    assert "rounds.parquet" in quad
    assert re.search(r"haflq.*'running'", haflq)


@pytest.mark.parametrize("left", ["", "events.jsonl"])
def test_a_folder_that_a_run_was_in_is_left_out_by_name(
    write_run: WriteRun, tmp_path: Path, left: str
) -> None:
    write_run(tmp_path, "fedlora", num_rounds=1)
    gone = write_run(tmp_path, "haflq", num_rounds=1)
    for file in gone.iterdir():
        if file.name != left:
            file.unlink()
    (tmp_path / "summary").mkdir()
    (line,) = open_runs([tmp_path]).left_out
    assert line == f"{gone} is not a run folder: it holds no manifest.json"


def test_no_paths_are_no_runs() -> None:
    with pytest.raises(RunError, match="at least one run must have ended; got none"):
        open_runs([])


def test_fleets_without_a_key_in_common_differ_in_a_few_lines() -> None:
    groups = [{"profile": f"p{n}", "count": n + 1, "link": "wifi" * 50} for n in range(30)]
    one = {"fleet": {"devices": groups}, **{f"a{n}": 1 for n in range(9)}}
    other = {"fleet": {"devices": [*groups[:7], {**groups[7], "count": 99}, *groups[8:]]}}
    said = settings_that_differ(other, one)
    assert "None / 1" in said
    assert said.endswith("4 more)")
    assert len(said) < 200
    said = settings_that_differ({"fleet": {"devices": groups}}, other)
    assert said == " (fleet.devices.7.count: 8 / 99)"
    assert settings_that_differ({"seeds": [1, 2]}, {"seeds": [1]}) == " (seeds: 2 / 1 entries)"
    long = settings_that_differ({"link": "a" * 900}, {"link": "b"})
    assert long == f" (link: {'a' * 37}... / b)"


def edit_manifest(folder: Path, dropped: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest[dropped]
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("table", "column", "value", "says"),
    [
        ("clients", "staleness", None, "clients.parquet lacks the columns staleness"),
        ("clients", "energy_idle_j", None, "clients.parquet lacks the columns energy_idle_j"),
        ("rounds", "accuracy", 1.5, r"accuracy must lie in \[0, 1\], got 1.5 to 1.5"),
        ("rounds", "accuracy", math.inf, "accuracy must be finite or have no value"),
    ],
)
def test_what_no_run_writes_is_refused_before_a_metric_or_figure_meets_it(
    folder: Path, table: str, column: str, value: float | None, says: str
) -> None:
    file = folder / f"{table}.parquet"
    frame = pd.read_parquet(file)
    changed = frame.drop(columns=column) if value is None else frame.assign(**{column: value})
    changed.to_parquet(file)
    with pytest.raises(RunError, match=says):
        study_of([load_run(folder)])


def test_targets_that_are_no_list_are_none(folder: Path) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "targets": 0.5}), "utf-8")
    assert study_of([load_run(folder)]).others == ()


def test_a_run_without_a_plan_has_no_choices_to_draw(folder: Path) -> None:
    file = folder / "clients.parquet"
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    assert choices.frame(study_of([load_run(folder)])).empty
