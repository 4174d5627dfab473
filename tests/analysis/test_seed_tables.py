"""The table over seeds: bounds, intervals and marks, alike in every format."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from analysis.commands.sweeps import summary
from analysis.metrics.run_metrics import Target
from analysis.metrics.study import Study
from analysis.report import seed_tables
from analysis.report.tables import Line
from analysis.runs.frames import RunSet

INF, NAN = math.inf, math.nan
ESTIMATES = {  # metric: value, upper, low, high of each variant
    "time_to_target_s": [(400, 400, 300, 500), (200, 200, 180, INF), (900, INF, 400, INF)],
    "speed_up": [(1, 1, 1, 1), (2.0, 2.0, 1.5, INF), (0, 0.5, 0, INF)],
    "rounds_to_target": [(12, 12, NAN, NAN), (10, 14, 8, 20), (30, INF, 9, INF)],
    "final_accuracy": [(0.6, 0.6, 0.55, 0.65), (0.7, 0.7, NAN, NAN), (NAN, NAN, NAN, NAN)],
    "num_oom": [(0, 0, 0, 0), (2, 2, 1.2, 2.8), (0, 0, 0, 0)],
    "num_crashed": [(0, 0, 0, 0)] * 3,
    "device_accuracy_median": [(NAN, NAN, NAN, NAN)] * 3,
}
VARIANTS = ["fedlora", "fed_quad", "haflq"]


@pytest.fixture
def study() -> Study:
    rows = [
        {"metric": metric, "variant": variant, "num_known": 3, "num_runs": 3,
         **dict(zip(("value", "upper", "low", "high"), map(float, own), strict=True))}
        for metric, values in ESTIMATES.items()
        for variant, own in zip(VARIANTS, values, strict=True)
    ]  # fmt: skip
    per_run = pd.DataFrame(
        {
            "variant": [v for v in VARIANTS for _ in range(3)],
            "seed": [0, 1, 2] * 3,
            "is_reached": [True] * 5 + [False] * 4,
        }
    )
    runs = RunSet(per_run[["variant"]], ("runs/x is damaged: cut",))
    return Study(runs, Target(0.55, "as asked for"), "fedlora", per_run, pd.DataFrame(rows))


def line(study: Study, title: str) -> Line:
    return next(one for one in seed_tables.lines(study) if one.title.startswith(title))


def test_a_cell_is_the_value_and_its_interval_in_the_unit_of_the_row(study: Study) -> None:
    row = line(study, "Time to 55 % accuracy (min)")
    assert row.cells == ("6.67 [5.00, 8.33]", "3.33 [3.00, ∞]", "not reached (> 15.0)")


def test_bounds_are_shown_as_bounds(study: Study) -> None:
    assert line(study, "Rounds to").cells == ("12", "10 to 14 [8, 20]", "not reached (> 30)")
    assert line(study, "Speed-up").cells == ("1.00", "2.00 [1.50, ∞]", "< 0.50 [0.00, ∞]")


def test_how_many_runs_reached_the_target_is_said(study: Study) -> None:
    assert line(study, "Runs that").cells == ("3 of 3", "2 of 3", "0 of 3")


def test_the_best_is_marked_where_no_bound_could_beat_it(study: Study) -> None:
    assert line(study, "Time to").is_best == (False, True, False)
    assert line(study, "Rounds to").is_best == (False, False, False)  # 12, or 10 to 14
    assert line(study, "Speed-up").is_best == (False, True, False)
    assert line(study, "Final").is_best == (False, True, False)  # what is unknown beats nothing
    assert line(study, "Plans that met OOM").is_best == (True, False, True)


def test_rows_that_no_variant_has_are_left_out(study: Study) -> None:
    titles = [one.title for one in seed_tables.lines(study)]
    assert not any("device" in title for title in titles)
    assert not any("crash" in title for title in titles)
    assert line(study, "Final accuracy").cells == ("60.0 [55.0, 65.0]", "70.0", "–")


def test_latex_has_as_many_cells_in_every_row_and_nothing_unescaped(study: Study) -> None:
    text = seed_tables.files(study)["table.tex"]
    body = [row for row in text.splitlines() if row.endswith(r"\\")]
    assert len(body) == 1 + len(seed_tables.lines(study))
    for row in body:
        assert len(re.findall(r"(?<!\\)&", row)) == 3
        outside = re.sub(r"\$[^$]*\$", "", row)  # without formulas
        assert not re.search(r"(?<!\\)[%#_$^~<>]", outside)
        assert outside.isascii()
        assert row.count("{") == row.count("}")
    order = [text.index(rf"\{rule}") for rule in ("toprule", "midrule", "bottomrule")]
    assert order == sorted(order)
    assert text.count(r"\begin{tabular}{lrrr}") == text.count(r"\end{tabular}") == 1
    assert r"\textbf{3.33 [3.00, $\infty$]}" in text


def test_markdown_says_what_was_left_out(study: Study) -> None:
    text = seed_tables.files(study)["table.md"]
    assert "| **3.33 [3.00, ∞]** |" in text
    assert "Left out: runs/x is damaged: cut" in text
    assert "3 seeds a variant; [95 % interval]" in text


def test_csv_holds_the_raw_numbers(study: Study) -> None:
    frame = pd.read_csv(io.StringIO(seed_tables.files(study)["table.csv"]))
    row = frame.set_index(["metric", "variant"]).loc[("time_to_target_s", "haflq")]
    assert (row["value"], row["upper"], row["low"]) == (900.0, INF, 400.0)


def test_the_command_writes_four_files_and_names_what_it_left_out(
    tmp_path: Path,
) -> None:
    import typer

    from tests.analysis.conftest import write_run as write

    for seed in (0, 1):
        for strategy in ("fedlora", "haflq"):
            write(tmp_path / "runs", strategy, seed=seed, num_rounds=4)
    write(tmp_path / "runs", "fedquad", num_rounds=1, status="failed", error="boom")
    app = typer.Typer()
    app.command()(summary)
    done = CliRunner().invoke(app, [str(tmp_path / "runs"), "--target", "0.2", "--smooth", "1"])
    assert done.exit_code == 0, done.output
    names = {path.name for path in (tmp_path / "runs" / "summary").iterdir()}
    assert names == {"table.md", "table.tex", "table.csv", "runs.csv"}
    assert "got 'failed' (boom)" in done.output
    assert "2 seeds a variant" in done.output


def test_some_of_the_runs_are_compared_where_asked_for(tmp_path: Path) -> None:
    import typer

    from tests.analysis.conftest import write_run as write

    for seed in (0, 1):
        write(tmp_path, "fedlora", seed=seed, num_rounds=2, conditions_hash=f"{seed}")
    write(tmp_path, "haflq", num_rounds=2, conditions_hash="other")
    app = typer.Typer()
    app.command()(summary)
    refused = CliRunner().invoke(app, [str(tmp_path)])
    assert "differ in the conditions of seed 0" in str(refused.exception)
    done = CliRunner().invoke(app, [str(tmp_path), "--where", "strategy.kind=fedlora"])
    assert done.exit_code == 0, done.output
    assert "2 seeds a variant" in done.output
    for entry, words in (("seed", "must read key=value, got 'seed'"), ("seed=9", "none is as ask"),
                         ("seed=[", "must read key=value, got 'seed=['")):  # fmt: skip
        refused = CliRunner().invoke(app, [str(tmp_path), "--where", entry])
        assert words in str(refused.exception)
