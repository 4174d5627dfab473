"""Run folders that others hand over: nothing outside is read or written, and no loss is silent."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

import fedclock
from analysis.commands.main import app
from analysis.report.report import write_report
from analysis.runs import columns
from analysis.runs.files import RunError
from analysis.runs.load import load_run
from simulator.config.experiment import load_experiment
from simulator.config.problems import UserError
from simulator.config.schema import MAX_ROUNDS
from simulator.log.manifest import RunFolderError, check_same_config, read_manifest
from simulator.log.run_folder import RunFolder
from simulator.runs.preparation import prepare
from simulator.world.record import record
from tests.simulator.fuzzing import seal
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
    if name == "config.yaml":
        with pytest.raises(RunFolderError, match="must be a regular file"):
            check_same_config(run, {})
    else:
        manifest = json.loads((run / "manifest.json").read_text("utf-8"))
        (run / "manifest.json").write_text(json.dumps({**manifest, "status": "failed"}))
        config = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
        with pytest.raises(RunFolderError, match="must hold its files itself"):
            RunFolder(run, config, {})
    assert outside.read_bytes() == content


def test_a_manifest_that_is_a_pipe_or_without_end_is_never_read(run: Path) -> None:
    whole = (run / "manifest.json").read_text("utf-8")
    (run / "manifest.json").unlink()
    os.mkfifo(run / "manifest.json")
    with pytest.raises(RunFolderError, match="must be a regular file"):
        read_manifest(run)
    (run / "manifest.json").unlink()
    (run / "manifest.json").write_text(whole, "utf-8")
    os.truncate(run / "manifest.json", 10**12)  # a sparse file takes no room on the disk
    for read in (read_manifest, load_run):
        with pytest.raises(UserError, match="must be at most 20000000 bytes"):
            read(run)
    (run / "manifest.json").unlink()
    (run / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(RunFolderError, match="damaged"):
        read_manifest(run)


@pytest.mark.parametrize("inner", ["adapter", "checkpoint", "checkpoint/x"])
def test_a_link_deeper_in_a_run_folder_is_not_written_through(
    run: Path, tmp_path: Path, inner: str
) -> None:
    (tmp_path / "outside").mkdir()
    link = run / inner / "file" if inner == "adapter" else run / inner
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "outside")
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    (run / "manifest.json").write_text(json.dumps({**manifest, "status": "failed"}))
    config = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    with pytest.raises(RunFolderError, match="must hold its files itself"):
        RunFolder(run, config, {})
    assert not list((tmp_path / "outside").iterdir())


def test_a_whole_number_too_large_for_a_float_is_as_if_it_were_not_said(
    run: Path, tmp_path: Path
) -> None:
    file, large = run / "manifest.json", 10**400
    manifest = json.loads(file.read_text("utf-8"))
    manifest |= {"wall_s": large, "epsilon": large, "delta": large}
    manifest["data"] |= {"num_test": large, "majority_share": large}
    manifest["read_alone"]["targets"] = [large]
    file.write_text(json.dumps(manifest), "utf-8")
    for command in ("report", "summary"):
        result = CliRunner().invoke(app, [command, str(run), "--output", str(tmp_path / command)])
        assert result.exit_code == 0, result.exception
    text = (tmp_path / "report" / "report.md").read_text("utf-8")
    assert "majority class unknown" in text
    assert "differential privacy" not in text


def test_a_report_folder_that_leads_elsewhere_is_not_written_to(run: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (run / "report").symlink_to(outside)
    (run / "summary").symlink_to(outside)
    for command in ("report", "summary"):
        result = CliRunner().invoke(app, [command, str(run)])
        assert isinstance(result.exception, UserError), result.output
        assert "must be a folder of its own, not a link" in str(result.exception)
    (run / "report").unlink()
    (run / "report").mkdir()
    (run / "report" / "figures").symlink_to(outside)
    with pytest.raises(UserError, match="must be a folder itself, not a link"):
        write_report([run], run / "report")
    assert not list(outside.iterdir())


@pytest.mark.parametrize("name", FILES)
def test_a_run_that_lost_a_file_is_not_recorded(run: Path, tmp_path: Path, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(RunFolderError, match=f"{name} is gone or differs"):
        record(run, tmp_path / "replayed")
    assert not (tmp_path / "replayed").exists()


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


@pytest.mark.parametrize("name", FILES)
def test_a_reader_names_a_file_that_is_not_as_the_run_wrote_it(run: Path, name: str) -> None:
    content = (run / name).read_bytes()
    (run / name).write_bytes(content + b"\n")
    with pytest.raises(RunError, match=f"{name} is gone or differs from its SHA-256"):
        load_run(run)
    (run / name).write_bytes(content)
    assert len(load_run(run).rounds) > 0


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "adapter/weights"])
def test_no_file_outside_counts_as_one_of_the_run(run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    for outside in (tmp_path / "outside", tmp_path / "elsewhere" / "weights"):
        outside.write_bytes(b"")
    (run / "adapter").symlink_to(tmp_path / "elsewhere")
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    files = {**manifest["files"], name: hashlib.sha256((run / name).read_bytes()).hexdigest()}
    (run / "manifest.json").write_text(json.dumps({**manifest, "files": files}), "utf-8")
    with pytest.raises(RunError, match=f"{name} is gone or differs"):
        load_run(run)


def column(values: Any, how: str) -> Any:
    """Draw a column of a run's table in which one value, or all of them, are no run's."""
    match how:
        case "negative":
            return [-1.0, *values[1:]]
        case "not a number":
            return [math.nan, *values[1:]]
        case "infinite":
            return [math.inf, *values[1:]]
        case "empty":
            return [None, *values[1:]]
        case _:
            return [str(value) for value in values]


@pytest.mark.parametrize("how", ["negative", "not a number", "infinite", "empty", "texts", "twice"])
@pytest.mark.parametrize(
    ("table", "name"),
    [("clients", "finished_s"), ("clients", "peak_memory_bytes"), ("rounds", "closed_s"),
     ("rounds", "round"), ("devices", "device_id"), ("devices", "memory_budget_bytes")],
)  # fmt: skip
def test_a_column_that_no_run_wrote_is_named_by_every_reader(
    run: Path, tmp_path: Path, table: str, name: str, how: str
) -> None:
    file = run / f"{table}.parquet"
    there = pq.read_table(file)
    if how == "twice":
        broken = there.append_column(name, there.column(name))
    else:
        values = pa.array(column(there.column(name).to_pylist(), how))
        broken = there.set_column(there.column_names.index(name), name, values)
    pq.write_table(broken, file)
    seal(run)
    said = f"{table}.parquet is damaged: .*({name}|device)"
    with pytest.raises(RunError, match=said):
        load_run(run)
    with pytest.raises(RunError, match=said):
        write_report([run], tmp_path / "report")
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("table", "name", "value"),
    [("clients", "staleness", 2**62), ("clients", "round", MAX_ROUNDS + 2),
     ("clients", "memory_budget_bytes", 0), ("devices", "memory_budget_bytes", 0)],
)  # fmt: skip
def test_a_number_that_no_run_reaches_is_refused(
    run: Path, table: str, name: str, value: int
) -> None:
    """As the size of an array it would take all memory, and as a divisor it would be no number."""
    file = run / f"{table}.parquet"
    there = pq.read_table(file)
    values = pa.array([value, *there.column(name).to_pylist()[1:]])
    pq.write_table(there.set_column(there.column_names.index(name), name, values), file)
    seal(run)
    with pytest.raises(RunError, match=rf"{table}\.parquet is damaged: {name} must "):
        load_run(run)


def test_a_table_of_more_rows_than_memory_is_refused_before_it_is_read(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "MAX_CELLS", 1000)
    there = pq.read_table(run / "clients.parquet")
    pq.write_table(there.take(pa.array([0] * 1000)), run / "clients.parquet")
    seal(run)
    with pytest.raises(RunError, match="must have at most 1,000 rows times columns, got 1,000"):
        load_run(run)


@pytest.mark.parametrize("name", ["config.yaml", "manifest.json"])
def test_half_of_a_surrogate_pair_is_no_text(run: Path, name: str) -> None:
    text = (run / name).read_text("utf-8")
    odd = 'odd: "a\\ud800"\n' if name == "config.yaml" else '{"odd": "a\\ud800",'
    (run / name).write_text(text + odd if name == "config.yaml" else text.replace("{", odd, 1))
    if name == "config.yaml":
        seal(run)
    with pytest.raises(RunError, match=f"{name} is damaged"):
        load_run(run)


def test_a_run_that_load_leaves_out_is_a_warning(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "other")
    (tmp_path / "other" / "rounds.parquet").unlink()
    with pytest.warns(UserWarning, match=r"left out: .*lacks rounds\.parquet"):
        loaded = fedclock.load(run, tmp_path / "other")
    assert [one.path for one in loaded.runs] == [run]
