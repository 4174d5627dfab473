"""Runs of several data sets, models or fleets stand in blocks, each compared by itself."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from analysis import results
from analysis.commands.main import app
from analysis.metrics.side_by_side import Studies, studies_of
from analysis.metrics.study import study
from analysis.report.formats import TerminalTable, table_files
from analysis.report.report import write_report
from analysis.report.table import side_by_side
from analysis.runs.blocks import ALONE, blocks_of
from analysis.runs.files import RunError
from analysis.runs.frames import open_runs
from tests.torture import long, some

WriteRun = Callable[..., Path]
OTHER = {"name": "chitchat", "sha256": "99cc", "num_train": 900, "num_test": 100}


def set_key(run: Path, section: str, key: str, value: object) -> None:
    """Change a key of a run's config, as a run of that setting would have it."""
    file = run / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config.setdefault(section, {})[key] = value
    file.write_text(yaml.safe_dump(config))


@pytest.fixture(scope="module")
def root(write_run: WriteRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return runs of two schedulers at two seeds on one data set, and two of three on another."""
    root = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        for strategy in ("fedlora", "haflq"):
            run = write_run(root, strategy, seed=seed, conditions_hash=f"a{seed}")
            set_key(run, "task", "data", "wordnet-16")
        for strategy in ("fedlora", "fedquad"):
            hashed = f"{strategy}-2"
            met = {"conditions_hash": f"b{seed}", "config_hash": hashed, "data": OTHER}
            run = write_run(root / "more", strategy, seed=seed, **met)
            set_key(run, "task", "data", "chitchat")
            run.rename(root / f"{strategy}-2-s{seed}")
    return root


@cache
def studies(root: Path, baseline: str | None = None, target: float | None = None) -> Studies:
    return studies_of(
        blocks_of(open_runs([root])),
        lambda runs, base: study(runs, target=target, baseline=base),
        baseline,
    )


def test_seeds_and_variants_that_met_the_same_conditions_are_one_block(root: Path) -> None:
    blocks = blocks_of(open_runs([root]))
    assert {block.heading: runs.variants for block, runs in blocks.items()} == {
        "data=wordnet-16": ["fedlora", "haflq"],
        "data=chitchat": ["fedlora", "fedquad"],
    }
    assert [block.folder for block in blocks] == ["data=wordnet-16", "data=chitchat"]


def test_runs_that_can_be_compared_are_a_block_without_a_heading(folders: list[Path]) -> None:
    found = open_runs(folders)
    assert blocks_of(found) == {ALONE: found}


def test_runs_that_no_setting_tells_apart_are_refused_as_ever(
    write_run: WriteRun, tmp_path: Path
) -> None:
    for strategy, conditions in (("fedlora", "a"), ("haflq", "b")):
        write_run(tmp_path, strategy, conditions_hash=conditions)
    with pytest.raises(RunError, match="differ in the conditions of seed 0"):
        studies(tmp_path)


def test_a_heading_and_its_folder_have_the_entries_of_a_list(
    write_run: WriteRun, tmp_path: Path
) -> None:
    for number, share in enumerate(([0.02], [0.0125, 0.0225])):
        met = {"conditions_hash": f"c{number}", "config_hash": f"h{number}"}
        run = write_run(tmp_path / str(number), "fedlora", **met)
        set_key(run, "fleet", "memory_share", share)
        run.rename(tmp_path / f"{run.name}-{number}")
    names = ["memory_share=0.02", "memory_share=0.0125,0.0225"]
    blocks = list(blocks_of(open_runs([tmp_path])))
    assert [block.heading for block in blocks] == names
    assert [block.folder for block in blocks] == names


def test_each_block_has_a_baseline_and_numbers_of_its_own(root: Path) -> None:
    for block, found in studies(root).items():
        alone = study(blocks_of(open_runs([root]))[block])
        pd.testing.assert_frame_equal(found.per_run, alone.per_run)
        assert found.baseline == "fedlora"


def test_a_baseline_is_that_of_the_blocks_that_have_it(root: Path) -> None:
    assert [one.baseline for one in studies(root, "haflq").values()] == ["haflq", "fedlora"]
    with pytest.raises(RunError, match="the baseline must be one of"):
        studies(root, "nobody")


def test_one_table_holds_the_rows_of_every_block_under_its_heading(root: Path) -> None:
    found = studies(root, target=0.3)
    table = side_by_side(found)
    assert table.variants == ("FedLoRA", "HAFLQ", "FedQuad")
    headings = [row.title for row in table.rows if not row.cells]
    assert headings == ["data=wordnet-16", "data=chitchat"]
    assert {len(row.cells) for row in table.rows if row.cells} == {3}
    times = [row for row in table.rows if row.title.startswith("Time to 30 % accuracy")]
    assert [bool(cell.text) for row in times for cell in row.cells] == [
        True, True, False, True, False, True,
    ]  # fmt: skip


def test_every_file_of_the_table_tells_the_blocks_apart(root: Path) -> None:
    files = table_files(studies(root))
    assert "| **data=chitchat** |  |  |  |" in files["table.md"]
    latex = files["table.tex"]
    assert r"\multicolumn{4}{l}{\emph{data=wordnet-16}} \\" in latex
    widths = {line.count(" & ") for line in latex.splitlines() if " & " in line}
    assert widths == {3}
    for name in ("table.csv", "differences.csv", "runs.csv"):
        frame = pd.read_csv(io.StringIO(files[name]))
        assert list(dict.fromkeys(frame["block"])) == ["data=wordnet-16", "data=chitchat"]
        assert frame.columns[0] == "block"


@long
def test_a_report_has_a_page_and_figures_for_each_block(root: Path, tmp_path: Path) -> None:
    report = write_report([root], tmp_path / "report")
    for name in ("data=chitchat", "data=wordnet-16"):
        inner = tmp_path / "report" / name
        assert {"report.html", "report.md", "table.csv"} <= {one.name for one in inner.iterdir()}
        assert (inner / "figures" / "accuracy.pdf").exists()
        assert f'href="{name.replace("=", "%3D")}/report.html"' in (
            tmp_path / "report" / "report.html"
        ).read_text("utf-8")
    assert all(file.exists() for file in report.files)


@long
def test_a_page_alone_has_the_pages_of_its_blocks_beside_it(root: Path, tmp_path: Path) -> None:
    report = write_report([root], tmp_path / "page.html")
    names = ["page-data=chitchat.html", "page-data=wordnet-16.html", "page.html"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert sorted(path.name for path in report.files) == names
    assert 'href="page-data%3Dchitchat.html"' in (tmp_path / "page.html").read_text("utf-8")


def test_python_has_the_blocks_one_by_one_and_in_one_table(root: Path, tmp_path: Path) -> None:
    result = results.load(root)
    table = result.table()
    assert list(dict.fromkeys(table.index.get_level_values(0))) == list(result.blocks)
    for heading, block in result.blocks.items():
        own = block.table()
        pd.testing.assert_frame_equal(table.loc[heading][own.columns], own, check_names=False)
    assert "data=chitchat" in result._repr_html_()
    written = results.write_figures(result, tmp_path, names=["waiting"])
    assert {path.parent.name for path in written} == {"data=chitchat", "data=wordnet-16"}
    assert all(path.exists() for path in written)


def test_the_summary_prints_every_block(root: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["summary", str(root), "-o", str(tmp_path / "s")])
    assert done.exit_code == 0, done.output
    assert done.output.index("data=wordnet-16") < done.output.index("data=chitchat")


@pytest.mark.parametrize("width", some([60, 80, 120], 3))
def test_nothing_of_a_table_is_cut_at_any_width_of_a_terminal(root: Path, width: int) -> None:
    table = side_by_side(studies(root))
    many = type(table)(
        tuple(f"variant number {k}" for k in range(6)),
        tuple(type(row)(row.title, row.cells * 2) for row in table.rows),
        table.note,
    )
    screen = io.StringIO()
    Console(file=screen, width=width).print(TerminalTable(many))
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in screen.getvalue()
    words = screen.getvalue().split()
    for row in many.rows:
        assert all(word in words for cell in row.cells for word in cell.text.split())
    assert all(word in words for row in many.rows for word in row.title.split())
