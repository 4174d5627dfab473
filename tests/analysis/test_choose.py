"""Some of the runs are chosen alike by every command and in Python, and never replace all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import fedclock as fc
from analysis.metrics.study import study_of
from analysis.report.table import study_table
from analysis.runs.choose import chosen
from analysis.runs.files import RunError
from analysis.runs.frames import open_runs
from tests.analysis.test_run_metrics import make_run
from tests.command_line import fedclock
from tests.torture import long

WriteRun = Callable[..., Path]


@pytest.fixture
def root(write_run: WriteRun, tmp_path: Path) -> Path:
    for seed in (0, 1, 2):
        for strategy in ("fedlora", "fedquad", "haflq"):
            write_run(tmp_path / "runs", strategy, seed=seed, num_rounds=3)
    return tmp_path / "runs"


def test_lists_and_exclusions_choose_runs(root: Path) -> None:
    runs = open_runs([root])
    names = {
        ("seed=0,2", "label!=haflq"): ["fedlora s0", "fedlora s2", "fedquad s0", "fedquad s2"],
        ("label!=haflq,fedlora",): ["fedquad s0", "fedquad s1", "fedquad s2"],
        ("seed!=0", "seed!=1", "strategy.kind = haflq"): ["haflq s2"],
    }
    for entries, expected in names.items():
        assert list(chosen(runs, entries).runs.index) == expected
    python = runs.where(seed=(0, 2)).without(label="haflq")
    assert list(python.runs.index) == names["seed=0,2", "label!=haflq"]
    assert list(runs.where().runs.index) == list(runs.without().runs.index) == list(runs.runs.index)


def test_runs_are_chosen_by_a_key_that_is_the_same_in_all(root: Path) -> None:
    runs = open_runs([root])
    assert "fleet.memory_share" not in runs.settings()
    assert list(chosen(runs, ["fleet.memory_share=0.02"]).runs.index) == list(runs.runs.index)
    with pytest.raises(RunError, match=r"memory_share is one of 0\.02$"):
        chosen(runs, ["fleet.memory_share=0.5"])


@pytest.mark.parametrize("entry", ["label", "label!", "=x", "seed=", "seed=[", "seed!=", "!=3"])
def test_an_entry_that_is_none_is_refused(root: Path, entry: str) -> None:
    with pytest.raises(RunError, match="--where must read"):
        chosen(open_runs([root]), [entry])


def test_a_name_or_value_that_no_run_has_is_refused_with_those_there_are(root: Path) -> None:
    with pytest.raises(RunError, match=r"fedlora, fedquad, haflq$"):
        chosen(open_runs([root]), ["label=fedqaud"])
    with pytest.raises(RunError, match=r"or a setting, got lable; did you mean label\?$"):
        chosen(open_runs([root]), ["lable=fedquad"])
    with pytest.raises(RunError, match=r"got zzz; there are path, experiment, label, .*strategy\."):
        chosen(open_runs([root]), ["zzz=1"])


@long
def test_a_table_of_some_runs_never_replaces_that_of_all(root: Path) -> None:
    cwd = root.parent
    assert fedclock("summary", "runs", cwd=cwd).returncode == 0
    full = {file.name: file.read_bytes() for file in (root / "summary").iterdir()}
    some = sorted(map(str, root.glob("*-s0")))
    commands = {
        "summary-label-not=haflq": ("summary", "runs", "--where", "label!=haflq"),
        "summary-seed=0,1-label=haflq": ("summary", "runs", "--where", "seed=0,1", "--where",
                                         "label=haflq"),
        "summary-of-3-runs": ("summary", *some),
        "figures-seed=1": ("figures", "runs", "--only", "waiting", "--where", "seed=1"),
        "figures": ("figures", "runs", "--only", "waiting"),
    }  # fmt: skip
    for command in commands.values():
        done = fedclock(*command, cwd=cwd)
        assert done.returncode == 0, done.stderr
    assert {file.name for file in root.iterdir() if not (file / "manifest.json").exists()} == {
        "summary",
        *commands,
    }
    assert {file.name: file.read_bytes() for file in (root / "summary").iterdir()} == full
    table = (root / "summary-label-not=haflq" / "table.md").read_text("utf-8")
    assert table.startswith("|  | FedLoRA | FedQuad |\n")
    assert {path.name for path in cwd.iterdir()} == {"runs"}


@long
def test_a_report_of_some_runs_never_replaces_that_of_all(root: Path) -> None:
    assert fedclock("report", "runs", "--where", "seed=1", cwd=root.parent).returncode == 0
    assert {file.name for file in root.iterdir() if not (file / "manifest.json").exists()} == {
        "report-seed=1"
    }
    assert "seed: 1\n" in (root / "report-seed=1" / "report.md").read_text("utf-8")


def test_what_a_where_means_is_in_the_name_of_its_folder(root: Path) -> None:
    for entry in ("label=fedlora", "label=  fedlora", "label!=haflq"):
        assert fedclock("summary", "runs", "--where", entry, cwd=root.parent).returncode == 0
    assert len(list(root.glob("summary-*"))) == 3


def test_results_in_python_are_chosen_the_same_way(root: Path) -> None:
    result = fc.load(root)
    labels = {run.label for run in result.without(label="haflq", seed=2).runs}
    assert labels == {"fedlora", "fedquad"}
    assert len(result.where(seed=[0, 1]).without(label="haflq").runs) == 4


def test_a_run_that_is_left_out_is_named_once(root: Path) -> None:
    (next(root.glob("haflq*s2")) / "rounds.parquet").write_bytes(b"no table")
    with pytest.warns(UserWarning, match="left out"):
        assert len(fc.load(root).runs) == 8
    done = fedclock("figures", "runs", "--only", "waiting", cwd=root.parent)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("rounds.parquet") == 1


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_no_best_is_marked_where_one_variant_alone_has_the_number(num_seeds: int) -> None:
    runs = []
    for seed in range(num_seeds):
        one, other = (make_run(name, [0.1, 0.5, 0.7]) for name in ("one", "other"))
        unmerged = other.rounds.assign(num_aggregated=0, waiting_s=math.nan)
        for run in (one, replace(other, rounds=unmerged)):
            runs.append(replace(run, manifest=run.manifest | {"seed": seed}))
    table = study_table(study_of(runs))
    waits = next(row for row in table.rows if row.title.startswith("Mean wait"))
    assert waits.cells[1].text == "–"
    assert not any(cell.is_best for cell in waits.cells)
