"""Hundreds of damaged run folders give a table, or an error that names the file; never a crash."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from analysis.figures import FIGURES
from analysis.metrics.study import study
from analysis.report.data import ReportData
from analysis.report.pages import to_markdown_page
from analysis.report.report import read_studies, write_report
from analysis.report.timeline import trace
from analysis.runs.blocks import ALONE
from analysis.runs.columns import RECORDS
from analysis.runs.frames import open_runs
from analysis.runs.load import load_run
from simulator.config.problems import UserError
from simulator.config.schema import MAX_ROUNDS
from tests.simulator.fuzzing import Broke, broken_bytes, broken_table, broken_tree, seal, time_limit
from tests.simulator.own_data import write_data
from tests.simulator.test_bad_input import BASE, simulate
from tests.torture import SEED, long, scaled


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two finished runs that are timing only."""
    folder = tmp_path_factory.mktemp("sound")
    task = {**BASE["task"], "data": str(write_data(folder / "data"))}
    fleet = {**BASE["fleet"], "devices": BASE["fleet"]["devices"][:1]}
    plain = {key: value for key, value in BASE.items() if key != "strategy"}
    strategies = {kind: {"kind": kind, "rank": 2} for kind in ("fedlora", "fedquad")}
    config = {**plain, "task": task, "fleet": fleet, "strategies": strategies}
    (folder / "x.yaml").write_text(yaml.safe_dump(config))
    simulate(folder / "x.yaml", folder / "runs")
    return folder / "runs" / "fuzzed"


def damage(rng: np.random.Generator, file: Path) -> None:
    """Damage one file, in its bytes or in what its text or its columns say."""
    content, kind = file.read_bytes(), file.suffix
    if rng.random() < 0.05:
        file.unlink()
    elif kind in (".json", ".yaml") and rng.random() < 0.8:
        tree: Any = broken_tree(rng, yaml.safe_load(content), [yaml.safe_load(content)])
        is_json = kind == ".json"
        text = json.dumps(tree, default=repr, skipkeys=True) if is_json else yaml.safe_dump(tree)
        file.write_text(text, "utf-8")
    elif kind == ".jsonl" and rng.random() < 0.8:
        lines = content.decode().splitlines()
        place = int(rng.integers(len(lines)))
        event = broken_tree(rng, json.loads(lines[place]), [json.loads(lines[0])])
        lines[place] = json.dumps(event, default=repr, skipkeys=True)
        order = rng.permutation(len(lines)) if rng.random() < 0.2 else range(len(lines))
        file.write_text("".join(lines[k] + "\n" for k in order), "utf-8")
    elif kind == ".parquet" and rng.random() < 0.8:
        pq.write_table(broken_table(rng, pq.read_table(file)), file)
    else:
        file.write_bytes(broken_bytes(rng, content))


def read_all(folder: Path, *, is_thorough: bool = True) -> str:
    """Read as summary and timeline do, and as report and figures before they draw.

    Returns what was said. Unless it ``is_thorough``, the report and the figures are left out.
    """
    said: list[str] = []

    def report() -> None:
        found = read_studies([folder])[ALONE]
        said.extend(found.left_out)
        for spec in FIGURES:
            spec.frame(found)
        to_markdown_page(ReportData(found, FIGURES)).encode()

    for read in (
        lambda: study(open_runs([folder]), target=None, baseline=None, smoothing=1),
        lambda: trace(load_run(folder)),
        *([report] if is_thorough else []),
    ):
        try:
            read()
        except UserError as error:
            said.append(str(error))
    return "; ".join(said)


@pytest.mark.parametrize(("key", "value"), [("experiment", []), ("num_rounds", {"a": 1})])
def test_a_manifest_with_a_value_of_no_plain_type_is_an_error_in_words(
    runs: Path, tmp_path: Path, key: str, value: Any
) -> None:
    shutil.copytree(runs, tmp_path / "copy")
    for file in (tmp_path / "copy").glob("*/manifest.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), key: value}), "utf-8")
    assert f"{key} must be a number or a text, got {value!r}" in read_all(tmp_path / "copy")


@pytest.mark.parametrize("seed", [True, -1, 2**63])
def test_a_seed_that_no_run_has_is_an_error_in_words(runs: Path, tmp_path: Path, seed: int) -> None:
    shutil.copytree(runs, tmp_path / "copy")
    for file in (tmp_path / "copy").glob("*/manifest.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "seed": seed}), "utf-8")
    assert "is damaged: seed must be" in read_all(tmp_path / "copy", is_thorough=False)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_an_event_with_a_number_that_is_not_finite_is_an_error_in_words(
    runs: Path, tmp_path: Path, number: str
) -> None:
    folder = shutil.copytree(next(path for path in runs.iterdir() if path.is_dir()), tmp_path / "x")
    log = folder / "events.jsonl"
    first, rest = log.read_text("utf-8").split("\n", 1)
    log.write_text(f'{first[:-1]}, "bytes": {number}}}\n{rest}', "utf-8")
    seal(folder)
    assert "line 1 is not JSON" in read_all(folder, is_thorough=False)


@long
@pytest.mark.parametrize("table", RECORDS)
def test_the_least_and_the_largest_number_of_a_column_is_an_error_in_words_or_a_table(
    runs: Path, tmp_path: Path, table: str
) -> None:
    """Each column in turn, in its first row and in all, in the tables of a run that is sealed."""
    folder = shutil.copytree(next(path for path in runs.iterdir() if path.is_dir()), tmp_path / "x")
    file = folder / f"{table}.parquet"
    sound, broke = pq.read_table(file), Broke(tmp_path)
    for place, name in enumerate(sound.column_names):
        kind = sound.schema.field(name).type
        extremes = {pa.int64(): (0, MAX_ROUNDS + 1, 2**63 - 1), pa.float64(): (0.0, 1e12, 1e30)}
        for value in extremes.get(kind, ()):
            for num_changed in (1, sound.num_rows):
                rest = sound.column(name).to_pylist()[num_changed:]
                column = pa.array([value] * num_changed + rest, kind)
                pq.write_table(sound.set_column(place, name, column), file)
                seal(folder)
                with broke.keeping(file):
                    read_all(folder)
    assert not broke.found, broke.found


@pytest.mark.torture
def test_a_damaged_run_folder_is_an_error_in_words_or_a_table(runs: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng([SEED, 2])
    broke, counts = Broke(tmp_path), Counter[str]()
    copy = tmp_path / "copy"
    sound = sorted(path for path in runs.iterdir() if path.is_dir())
    for number in range(scaled(15, 20_000, least=200)):
        shutil.copytree(sound[number % len(sound)], copy)
        files = sorted(path for path in copy.rglob("*") if path.is_file())
        file = files[rng.integers(len(files))]
        damage(rng, file)
        if rng.random() < 0.9:
            with suppress(ValueError, OSError, TypeError):
                seal(file.parent)
        with broke.keeping(file if file.exists() else files[0]), time_limit(20.0):
            said = read_all(copy, is_thorough=number % 10 == 0)
            assert len(said) < 20_000
            counts["error" if said else "table"] += 1
        shutil.rmtree(copy)
        if counts.total() % 100 == 0:
            print(f"run folders: {dict(counts)}", flush=True)
    assert not broke.found, broke.found
    assert counts["error"] > 0


@long
def test_a_report_on_damaged_runs_is_whole_or_not_there(runs: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng([SEED, 3])
    for number in range(scaled(4, 40)):
        copy, out = tmp_path / f"copy{number}", tmp_path / f"report{number}"
        shutil.copytree(runs, copy)
        files = sorted(copy.rglob("*.parquet"))
        damage(rng, files[rng.integers(len(files))])
        try:
            write_report([copy], out, target=None, baseline=None)
            assert (out / "report.md").is_file()
        except UserError:
            assert not out.exists()
        assert not list(tmp_path.glob(".*partial*"))
