"""A report is whole or absent, says what was run and what it means, and builds alike twice."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analysis import escape
from analysis.figures import FIGURES
from analysis.metrics.study import Study, study_of
from analysis.report.data import ReportData
from analysis.report.formats import table_files
from analysis.report.pages import to_markdown_page
from analysis.report.report import Report, read_studies, write_report
from analysis.report.table import note
from analysis.runs.blocks import ALONE
from analysis.runs.files import RunError
from analysis.runs.load import Run
from tests.torture import long

WriteRun = Callable[..., Path]


@pytest.fixture(scope="module")
def report(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Report:
    return write_report(folders, tmp_path_factory.mktemp("out") / "report")


@pytest.fixture(scope="module")
def study(folders: list[Path]) -> Study:
    return read_studies(folders)[ALONE]


def content(report: Report) -> dict[str, bytes]:
    return {path.relative_to(report.out).as_posix(): path.read_bytes() for path in report.files}


@long
def test_a_report_is_its_tables_its_page_and_every_figure_in_each_format(report: Report) -> None:
    names = [name for name in content(report) if "/" not in name]
    tables = ["runs.csv", "table.csv", "table.md", "table.tex"]
    assert names == ["differences.csv", "report.html", "report.md", *tables]
    on_disk = [path for path in report.out.rglob("*") if path.is_file()]
    assert sorted(on_disk) == sorted(report.files)
    drawn = [spec for spec in FIGURES if not spec.frame(report.studies[ALONE]).empty]
    assert len(drawn) > 15
    assert len(report.files) == 7 + 4 * len(drawn)


@long
def test_every_link_of_the_page_leads_to_a_file(report: Report) -> None:
    links = re.findall(r"\]\(([^)]+)\)", (report.out / "report.md").read_text())
    assert len(links) == 3 * len(list((report.out / "figures").glob("*.csv")))
    assert all((report.out / link).is_file() for link in links)


def test_the_page_says_what_was_run_and_under_which_conditions(
    study: Study, folders: list[Path]
) -> None:
    text = to_markdown_page(ReportData(study, []))
    assert "minilm-l6" in text
    assert "wordnet-16 (12800 training and 1600 test examples, 16 classes" in text
    assert all(str(folder) in text for folder in folders)
    assert "fleet.memory_share: 0.02" in text
    assert "| raspberry-pi-4 | 0, 5 | 93.1 to 99.0 MB | 5g-car, lte-walk |" in text
    assert "strategy.kind" not in text  # differs between the runs: not a shared setting
    assert table_files({ALONE: study})["table.md"].rstrip() in text


def test_the_page_keeps_the_authors_claims_apart_from_what_was_measured(study: Study) -> None:
    text = to_markdown_page(ReportData(study, []))
    assert "re-implemented from the published abstracts" in text
    assert "our own reconstruction" in text
    row, base = (study.per_run.loc[f"{label} s0"] for label in ("haflq", "fedlora"))
    memory = 100 * (row["planned_memory_bytes"] / base["planned_memory_bytes"] - 1)
    points = 100 * (row["final_accuracy"] - base["final_accuracy"])
    assert f"against FedLoRA: mean memory that a plan needs {memory:+.0f} %" in text
    assert f"({points:+.1f} points)" in text
    speed_up = study.estimates("speed_up")["fedquad"].value
    assert f"Measured here, FedQuad: {speed_up:.2f} times as fast as FedLoRA." in text


def test_the_page_names_what_differs_beside_the_strategy(runs: list[Run]) -> None:
    assert "the runs differ in" not in to_markdown_page(ReportData(study_of(runs), []))
    config = {**runs[1].config, "training": "none"}
    unlike = [runs[0], replace(runs[1], config=config)]
    text = to_markdown_page(ReportData(study_of(unlike), []))
    assert "Beside the strategy, the runs differ in** training, training.batch_size." in text


def test_claims_are_left_out_where_their_strategies_are(runs: list[Run]) -> None:
    alone = study_of([run for run in runs if run.strategy == "fedlora"])
    assert "claim" not in to_markdown_page(ReportData(alone, []))


def test_a_target_never_reached_is_told_in_words(runs: list[Run]) -> None:
    text = to_markdown_page(ReportData(study_of(runs, target=0.55), []))
    assert "* FedLoRA did not reach 55 %." in text
    assert re.search(
        r"FedQuad reached 55 % after .*; more than .* \(FedLoRA never reached it\)", text
    )


@long
def test_a_report_over_an_older_one_has_the_same_bytes_keeps_other_files_and_tells_its_progress(
    report: Report, folders: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "table.md").write_text("old")
    told: list[tuple[int, int, str]] = []
    again = write_report(folders, out, progress=lambda *step: told.append(step))
    assert content(again) == content(report)
    assert (out / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [done for done, _, _ in told] == list(range(len(FIGURES) + 3))
    assert {total for _, total, _ in told} == {len(FIGURES) + 2}
    assert told[1][2] == "draw accuracy"


def test_a_target_and_a_baseline_are_those_asked_for(folders: list[Path]) -> None:
    study = read_studies(folders[2:], target=0.4, baseline="haflq")[ALONE]
    assert study.baseline == "haflq"
    assert "Time to 40 % accuracy" in table_files({ALONE: study})["table.md"]


def test_unfinished_runs_are_left_out_and_named(write_run: WriteRun, tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "fedlora", num_rounds=2)
    write_run(tmp_path / "runs", "haflq", num_rounds=2, status="interrupted")
    study = read_studies([tmp_path / "runs"])[ALONE]
    assert [run.label for run in study.runs] == ["fedlora"]
    assert "'interrupted'" in study.left_out[0]
    page = to_markdown_page(ReportData(study, []))
    assert f"Left out: {escape.markdown(study.left_out[0])}." in page


def test_damaged_and_incomplete_runs_are_left_out_and_named(
    write_run: WriteRun, tmp_path: Path
) -> None:
    write_run(tmp_path / "runs", "fedlora", num_rounds=2)
    cut = write_run(tmp_path / "runs", "haflq", num_rounds=2) / "rounds.parquet"
    cut.write_bytes(cut.read_bytes()[:50])
    (write_run(tmp_path / "runs", "fedquad", num_rounds=2) / "manifest.json").unlink()
    study = read_studies([tmp_path / "runs"])[ALONE]
    assert [run.label for run in study.runs] == ["fedlora"]
    assert len(study.left_out) == 2
    text = to_markdown_page(ReportData(study, []))
    assert "rounds.parquet is damaged" in text
    assert re.search(r"Left out: .*fedquad.* holds no manifest\.json", text)


def test_no_finished_run_is_an_error_that_writes_nothing(
    write_run: WriteRun, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "runs", "fedlora", num_rounds=1, status="running")
    with pytest.raises(RunError, match="at least one run must have ended"):
        write_report([folder], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@long
def test_an_error_half_way_leaves_nothing_behind(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs", "fedlora", num_rounds=1)
    (folder / "events.jsonl").write_text("{\n")  # read only when figures are drawn
    with pytest.raises(RunError, match=r"events\.jsonl: line 1 is not JSON"):
        write_report([folder], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_place_that_cannot_be_written_is_named(folders: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"the report cannot be written to .*file/out"):
        write_report(folders[:1], tmp_path / "file" / "out")
    with pytest.raises(RunError, match=r"must be written to a folder, got .*, which is a file"):
        write_report(folders[:1], tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_runs_without_evaluations_are_reported_without_accuracy(
    write_run: WriteRun, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "runs", "fedquad", num_rounds=2)
    rounds = pd.read_parquet(folder / "rounds.parquet").assign(accuracy=float("nan"))
    rounds.to_parquet(folder / "rounds.parquet")
    study = read_studies([folder])[ALONE]
    drawn = [spec for spec in FIGURES if not spec.frame(study).empty]
    assert drawn
    assert "accuracy" not in {spec.name for spec in drawn}
    text = to_markdown_page(ReportData(study, drawn))
    assert "No target accuracy: no run evaluated its model." in text
    assert "figures/accuracy" not in text


def test_hashes_are_short_where_a_person_reads_them(runs: list[Run]) -> None:
    long = {"conditions_hash": "0123456789abcdef" * 4, "git_sha": "fedcba9876543210" * 2}
    facts = ReportData(
        study_of([replace(r, manifest={**r.manifest, **long}) for r in runs]), []
    ).facts
    assert any(fact.endswith("failures): 01234567") for fact in facts)
    assert "code: commit fedcba98" in facts


def test_table_and_page_tell_the_epsilon_of_a_private_run(runs: list[Run]) -> None:
    first, *others = runs
    private = replace(first, manifest={**first.manifest, "epsilon": 3.21456, "delta": 1e-5})
    study = study_of([private, *others])
    words = f"differential privacy of devices: {study.name(first.label)} has epsilon 3.215 at delta"
    assert words in note(study)
    assert any(words in fact for fact in ReportData(study, []).facts)
    assert "privacy" not in note(study_of(runs))
