"""The table of a study says the same in every format: units, bounds, intervals, marks."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from analysis.commands.sweeps import summary
from analysis.metrics.definitions import METRICS
from analysis.metrics.run_metrics import Target
from analysis.metrics.study import Study
from analysis.report.formats import TerminalTable, table_files, to_markdown
from analysis.report.table import StudyTable, TableRow, study_table
from analysis.runs.blocks import ALONE
from analysis.units import BYTES, COUNT, RATIO, SECONDS, Scale, significant
from devices.tasks.classification import ACCURACY

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


def values_of_runs(
    estimates: Mapping[str, Sequence[tuple[float, ...]]], num_seeds: int
) -> dict[str, list[float]]:
    """Return the columns of runs that differ by a thousandth from seed to seed.

    A run of a variant whose number is a bound did not reach the target.
    """
    columns: dict[str, list[float]] = {}
    for metric in METRICS:
        own = estimates.get(metric.column, ())
        ends = [(one[0], one[1], 1 + k / 1000) for one in own for k in range(num_seeds)]
        if own:
            columns[metric.column] = [
                value * step if value == upper else NAN for value, upper, step in ends
            ]
        if own and metric.at_least:
            columns[metric.at_least] = [value * step for value, _, step in ends]
    return columns


def study_with(
    estimates: Mapping[str, Sequence[tuple[float, ...]]], *, target: Target, num_seeds: int = 3
) -> Study:
    """Return a study of the variants with these estimates."""
    rows = [
        {"metric": metric, "variant": variant, "num_known": 3, "num_runs": 3,
         **dict(zip(("value", "upper", "low", "high"), map(float, own), strict=True))}
        for metric, values in estimates.items()
        for variant, own in zip(VARIANTS, values, strict=True)
    ]  # fmt: skip
    per_run = pd.DataFrame(
        {
            **values_of_runs(estimates, num_seeds),
            "variant": [v for v in VARIANTS for _ in range(num_seeds)],
            "strategy": [v for v in VARIANTS for _ in range(num_seeds)],
            "seed": list(range(num_seeds)) * 3,
            "is_reached": [place < 5 for place in range(3 * num_seeds)],
        }
    )
    left_out = ("runs/x is damaged: cut",)
    return Study(target, "fedlora", per_run, pd.DataFrame(rows), ACCURACY, left_out=left_out)


@pytest.fixture
def study() -> Study:
    return study_with(ESTIMATES, target=Target(0.55, "as asked for"))


def line(study: Study, title: str) -> TableRow:
    return next(one for one in study_table(study).rows if one.title.startswith(title))


def texts(row: TableRow) -> tuple[str, ...]:
    return tuple(cell.text for cell in row.cells)


def best(row: TableRow) -> tuple[bool, ...]:
    return tuple(cell.is_best for cell in row.cells)


def test_a_cell_is_the_value_and_its_interval_in_the_unit_of_the_row(study: Study) -> None:
    row = line(study, "Time to 55 % accuracy (min)")
    assert texts(row) == ("6.67 [5.00, 8.33]", "3.33 [3.00, ∞]", "not reached (> 15.0)")


def test_bounds_are_shown_as_bounds(study: Study) -> None:
    assert texts(line(study, "Rounds to")) == ("12", "10 to 14 [8, 20]", "not reached (> 30)")
    assert texts(line(study, "Speed-up")) == ("1.00", "2.00 [1.50, ∞]", "< 0.50 [0.00, ∞]")


def test_how_many_runs_reached_the_target_is_said(study: Study) -> None:
    assert texts(line(study, "Runs that")) == ("3 of 3", "2 of 3", "0 of 3")


def test_the_best_is_marked_where_it_is_told_apart_from_every_other(study: Study) -> None:
    assert best(line(study, "Time to")) == (False, True, False)
    assert best(line(study, "Rounds to")) == (False, False, False)  # 12, or 10 to 14
    assert best(line(study, "Speed-up")) == (False, True, False)
    assert best(line(study, "Final")) == (False, True, False)  # what is unknown beats nothing
    assert best(line(study, "Plans that met OOM")) == (True, False, True)


def test_rows_that_no_variant_has_are_left_out(study: Study) -> None:
    titles = [one.title for one in study_table(study).rows]
    assert not any("Median device" in title for title in titles)
    assert not any("crash" in title for title in titles)
    assert texts(line(study, "Final accuracy")) == ("60.0 [55.0, 65.0]", "70.0", "–")


def test_latex_has_as_many_cells_in_every_row_and_nothing_unescaped(study: Study) -> None:
    text = table_files({ALONE: study})["table.tex"]
    body = [row for row in text.splitlines() if row.endswith(r"\\")]
    assert len(body) == 1 + len(study_table(study).rows)
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
    text = table_files({ALONE: study})["table.md"]
    assert r" **3.33 \[3.00, ∞\]** |" in text
    assert "Left out: runs/x is damaged: cut" in text
    assert r"3 seeds a variant; \[95 % interval\], none where all seeds have one value; " in text


def test_markdown_is_cut_in_tables_of_few_variants_or_turned(study: Study) -> None:
    def cells(text: str) -> list[list[str]]:
        lines = [line for line in text.splitlines() if line.startswith("|")]
        return [line[2:-2].split(" | ") for line in lines if "---" not in line]

    table = study_table(study)
    whole = cells(to_markdown(table))
    halves = to_markdown(table, most_across=2)
    (first, second), notes = halves.split("\n\n")[:2], halves.split("\n\n")[2:]
    for row, left, right in zip(whole, cells(first), cells(second), strict=True):
        assert row == [*left, *right[1:]]
    assert notes == to_markdown(table).split("\n\n")[1:]
    turned = cells(to_markdown(table, is_variant_a_row=True))
    assert turned == [list(column) for column in zip(*whole, strict=True)]


def test_csv_holds_the_raw_numbers(study: Study) -> None:
    frame = pd.read_csv(io.StringIO(table_files({ALONE: study})["table.csv"]))
    row = frame.set_index(["metric", "variant"]).loc[("time_to_target_s", "haflq")]
    assert (row["value"], row["upper"], row["low"]) == (900.0, INF, 400.0)


def test_the_command_writes_its_files_and_names_what_it_left_out(
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
    assert names == {"table.md", "table.tex", "table.csv", "runs.csv", "differences.csv"}
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
    both = CliRunner().invoke(
        app, [str(tmp_path), "--where", "label=fedlora", "--where", "seed=0,1"]
    )
    assert "2 seeds a variant" in both.output
    for entry, words in (("seed", "key!=value, got 'seed'"), ("seed=9", "seed is one of 0, 1"),
                         ("seed=[", "key!=value, got 'seed=['")):  # fmt: skip
        refused = CliRunner().invoke(app, [str(tmp_path), "--where", entry])
        assert words in str(refused.exception)


ONE_SEED = {
    "time_to_target_s": [(400.0, 400.0), (200.0, 200.0), (900.0, INF)],
    "speed_up": [(1, 1), (2, 2), (0, 0.44)],
    "energy_to_target_j": [(5400, 5400), (5404, 5404), (9000, INF)],
    "final_accuracy": [(0.6123, 0.6123), (0.7, 0.7), (0.48, 0.48)],
    "num_rounds": [(30, 30)] * 3,
    "simulated_s": [(9000, 9000), (8000, 8000), (16000, 16000)],
    "waiting_s": [(2, 2), (NAN, NAN), (1, 1)],
    "num_oom": [(1234, 1234), (0, 0), (0, 0)],
    "num_late": [(0, 0)] * 3,
}


@pytest.fixture
def single() -> Study:
    return single_with(Target(0.55, "as asked for"))


def single_with(target: Target) -> Study:
    estimates = {name: [(*ends, NAN, NAN) for ends in own] for name, own in ONE_SEED.items()}
    return study_with(estimates, target=target, num_seeds=1)


def test_one_seed_has_numbers_without_intervals_in_the_unit_of_their_row(single: Study) -> None:
    assert texts(line(single, "Time to 55 % accuracy (min)")) == (
        "6.67", "3.33", "not reached (> 15.0)",
    )  # fmt: skip
    assert texts(line(single, "Speed-up over fedlora (×)")) == ("1.00", "2.00", "< 0.44")
    assert texts(line(single, "Final accuracy (%)")) == ("61.2", "70.0", "48.0")
    assert texts(line(single, "Plans that met OOM")) == ("1,234", "0", "0")
    assert texts(line(single, "Simulated time (h)")) == ("2.50", "2.22", "4.44")
    assert texts(line(single, "Mean wait per round (s)")) == ("2.00", "–", "1.00")
    assert not any(row.title.startswith("Runs that reached") for row in study_table(single).rows)
    assert "seeds a variant" not in study_table(single).note


def test_cells_that_read_like_the_best_are_marked_with_it() -> None:
    estimates = {name: [(*ends, NAN, NAN) for ends in own] for name, own in ONE_SEED.items()}
    study = study_with(estimates, target=Target(0.55, "as asked for"))
    assert best(line(study, "Energy to")) == (True, True, False)
    assert best(line(study, "Plans that met OOM")) == (False, True, True)
    for title in ("Simulated", "Rounds", "Plans dropped"):  # no direction, or all read alike
        assert not any(best(line(study, title)))


def test_one_seed_marks_nothing(single: Study) -> None:
    assert not any(cell.is_best for row in study_table(single).rows for cell in row.cells)
    assert "one seed, no value is marked" in study_table(single).note


def test_two_seeds_stand_as_their_values(study: Study) -> None:
    estimates = {name: [(*ends, NAN, NAN) for ends in own] for name, own in ONE_SEED.items()}
    pair = study_with(estimates, target=Target(0.55, "as asked for"), num_seeds=2)
    assert texts(line(pair, "Time to 55 % accuracy (min)")) == (
        "6.67", "3.33, 3.34", "> 15.0",
    )  # fmt: skip
    pair.per_run.loc[1, "final_accuracy"] = 0.7
    assert texts(line(pair, "Final accuracy (%)"))[0] == "61.2, 70.0"


def test_the_terminal_table_stars_the_best_so_that_it_shows_without_colour(study: Study) -> None:
    screen = io.StringIO()
    Console(file=screen, width=130).print(TerminalTable(study_table(study)))
    printed = " ".join(screen.getvalue().split())
    assert "│ 3.33 [3.00, ∞] * │ not reached (> 15.0) │" in printed
    assert "target 55 %: as asked for, by the mean of 3 evaluations; baseline fedlora" in printed


def test_without_a_target_its_rows_are_left_out_and_the_note_says_why() -> None:
    table = study_table(single_with(Target(None, "no run evaluated its model")))
    assert table.rows[0].title == "Final accuracy (%)"
    assert "no target: no run evaluated its model" in table.note


EVIL = "\x1b[2J|[bold]a$b$_c&\\\n# <b>\u202e%"


def evil_files() -> dict[str, str]:
    study = study_with(ESTIMATES, target=Target(0.55, "as asked for"))
    per_run, summary = (one.replace("haflq", EVIL) for one in (study.per_run, study.summary))
    return table_files({ALONE: replace(study, per_run=per_run, summary=summary, baseline=EVIL)})


@pytest.mark.parametrize("name", ["table.md", "table.tex"])
def test_a_label_of_any_characters_leaves_the_table_as_it_is(name: str) -> None:
    plain = table_files({ALONE: study_with(ESTIMATES, target=Target(0.55, "as asked for"))})[name]
    text = evil_files()[name]
    text.encode("utf-8")
    assert len(text.splitlines()) == len(plain.splitlines())
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text)
    separator = r"(?<!\\)\|" if name == "table.md" else r"(?<!\\)&"
    for own, other in zip(text.splitlines(), plain.splitlines(), strict=True):
        assert len(re.findall(separator, own)) == len(re.findall(separator, other))


def test_a_label_of_any_characters_is_printed_and_never_obeyed() -> None:
    study = study_with(ESTIMATES, target=Target(0.55, "as asked for"))
    table = study_table(study)
    evil = StudyTable((EVIL, *table.variants[1:]), table.rows, f"baseline {EVIL}")
    screen = io.StringIO()
    Console(file=screen, width=200, force_terminal=True, no_color=True).print(TerminalTable(evil))
    printed = re.sub(r"\x1b\[[\d;]*m", "", screen.getvalue())
    assert "\x1b" not in printed
    assert r"\x1b[2J|[bold]a$b$_c&" in printed


@pytest.mark.parametrize(
    ("scale", "values", "unit"),
    [
        (SECONDS, [179.0, NAN], "s"),
        (SECONDS, [180.0, 2.0], "min"),
        (SECONDS, [3 * 3600.0, INF], "h"),
        (BYTES, [3e6], "MB"),
        (BYTES, [2.9e9], "MB"),
        (BYTES, [NAN], "kB"),
    ],
)
def test_the_unit_is_the_largest_that_leaves_3_before_the_point(
    scale: Scale, values: list[float], unit: str
) -> None:
    assert scale.unit(values).name == unit


def test_counts_stay_whole_and_ratios_have_two_decimals() -> None:
    one = COUNT.unit([])
    assert [COUNT.number(value, one) for value in (1234.0, 3.5)] == ["1,234", "3.50"]
    assert RATIO.number(12.3456, one) == "12.35"


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_a_number_is_short_and_within_half_a_percent_of_itself(value: float) -> None:
    # three significant digits: half a unit of the third is at most 0.5 % of the first
    text = significant(value)
    assert float(text.replace(",", "")) == pytest.approx(value, rel=0.005001)
    assert len(text) <= len("999,999,999,999")
