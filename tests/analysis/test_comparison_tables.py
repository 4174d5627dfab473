"""The table says the same in every format: units, marks, and what was not reached."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from analysis.metrics.comparison import Comparison, compare
from analysis.metrics.run_metrics import Target
from analysis.report import tables
from analysis.runs.load import Run
from analysis.units import BYTES, SECONDS, Unit, choose, significant

NAN = math.nan
ROWS = {
    "is_reached": [True, True, False],
    "time_to_target_s": [400.0, 200.0, NAN],
    "speed_up": [1.0, 2.0, 2.5],  # the last a bound only
    "speed_up_relation": ["=", "=", "<"],
    "rounds_to_target": [12, 12, NAN],
    "bytes_to_target": [9_500_000, 4_000_000, NAN],
    "energy_to_target_j": [5400.0, 5404.0, NAN],
    "final_accuracy": [0.6123, 0.7, 0.48],
    "best_accuracy": [0.62, 0.7, 0.7],
    "num_rounds": [30, 30, 30],
    "simulated_s": [9000.0, 8000.0, 16000.0],
    "waiting_s": [2.0, NAN, 1.0],
    "planned_memory_bytes": [2e8, 1.5e8, 1.4e8],
    "peak_memory_bytes": [2e8, 1.5e8, 1.4e8],
    "peak_memory_share": [0.99, 0.7, 0.8],
    "num_oom": [1234, 0, 0],
    "num_late": [0, 0, 0],
    "num_sat_out": [0, 3, 5],
    "download_bytes": [12_000_000, 11_000_000, 10_000_000],
    "upload_bytes": [1_200_000, 1_100_000, 900_000],
    "energy_j": [9e3, 8e3, 7e3],
    "lost_work_share": [0.25, 0.0, 0.0],
}
TITLES = [
    "Time to 55 % accuracy (min)",
    "Speed-up over fedlora (×)",
    "Rounds to 55 % accuracy",
    "Traffic to 55 % accuracy (MB)",
    "Energy to 55 % accuracy (kJ)",
]


def comparison(target: float | None = 0.55) -> Comparison:
    empty = pd.DataFrame()
    runs = tuple(
        Run(Path(label), label, {"strategy": label}, {}, empty, empty, empty)
        for label in ("fedlora", "fed_quad", "haflq")
    )
    rule = "as asked for" if target else "no run evaluated its model"
    table = pd.DataFrame(ROWS, index=[run.label for run in runs])
    return Comparison(runs, runs[0], Target(target, rule), table)


def line(title: str) -> tables.Line:
    return next(one for one in tables.lines(comparison()) if one.title.startswith(title))


def test_titles_carry_the_target_the_baseline_and_one_unit_a_row() -> None:
    assert [one.title for one in tables.lines(comparison())][:5] == TITLES


def test_cells_stand_in_the_unit_of_their_row() -> None:
    assert line("Time to 55").cells[:2] == ("6.67", "3.33")
    assert line("Final").cells == ("61.2", "70.0", "48.0")
    assert line("Plans that met OOM").cells == ("1,234", "0", "0")
    assert line("Simulated time (h)").cells == ("2.50", "2.22", "4.44")


def test_what_was_not_reached_is_said_in_every_row_to_the_target() -> None:
    to_target = tables.lines(comparison())[:5]
    assert [one.cells[2] for one in to_target if "Speed" not in one.title] == ["not reached"] * 4


def test_a_bound_on_the_speed_up_shows_its_relation() -> None:
    assert line("Speed-up").cells == ("1.00", "2.00", "< 2.50")


def test_the_best_of_a_row_is_marked() -> None:
    assert line("Time to 55").is_best == (False, True, False)
    assert line("Final").is_best == (False, True, False)
    assert line("Plans that met OOM").is_best == (False, True, True)
    assert line("Mean wait").is_best == (False, False, True)


def test_cells_that_read_like_the_best_are_marked_with_it() -> None:
    assert line("Energy to").cells[:2] == ("5.40", "5.40")
    assert line("Energy to").is_best == (True, True, False)


def test_an_upper_bound_on_the_speed_up_is_never_the_best() -> None:
    assert line("Speed-up").is_best == (False, True, False)


def test_rows_without_a_direction_or_a_difference_have_no_mark() -> None:
    for title in ("Simulated", "Highest peak in its budget", "Plans dropped"):
        assert not any(line(title).is_best)
    (rounds,) = (one for one in tables.lines(comparison()) if one.title == "Rounds")
    assert not any(rounds.is_best)


def test_a_number_that_does_not_exist_is_a_dash() -> None:
    assert line("Mean wait").cells == ("2.00", "–", "1.00")


def test_markdown_is_a_table_with_bold_best_values_and_the_rule() -> None:
    text = tables.markdown(comparison())
    rows = text.splitlines()
    assert rows[0] == "|  | fedlora | fed_quad | haflq |"
    assert rows[2] == "| Time to 55 % accuracy (min) | 6.67 | **3.33** | not reached |"
    assert text.endswith("\n\nBest of a row marked; target 55 %: as asked for; baseline fedlora.\n")


def test_latex_is_a_booktabs_tabular_with_its_characters_escaped() -> None:
    rows = tables.latex(comparison()).splitlines()
    assert rows[1:5] == [
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r" & fedlora & fed\_quad & haflq \\",
        r"\midrule",
    ]
    assert rows[5] == r"Time to 55 \% accuracy (min) & 6.67 & \textbf{3.33} & not reached \\"
    assert rows[6] == r"Speed-up over fedlora ($\times$) & 1.00 & \textbf{2.00} & $<$ 2.50 \\"
    assert rows[-2:] == [r"\bottomrule", r"\end{tabular}"]


def test_the_terminal_table_stars_the_best_so_that_it_shows_without_colour() -> None:
    screen = io.StringIO()
    Console(file=screen, width=100).print(tables.rich_table(comparison()))
    printed = " ".join(screen.getvalue().split())
    assert "│ Time to 55 % accuracy (min) │ 6.67 │ 3.33 * │ not reached │" in printed
    assert "target 55 %: as asked for; baseline fedlora" in printed


def test_without_a_target_its_rows_are_left_out_and_the_note_says_why() -> None:
    found = comparison(target=None)
    assert tables.lines(found)[0].title == "Final accuracy (%)"
    assert "no target: no run evaluated its model" in tables.note(found)


def test_csv_holds_the_raw_numbers_of_the_table(runs: list[Run]) -> None:
    found = compare(runs)
    # the python engine reads floats exactly
    read = pd.read_csv(io.StringIO(tables.csv(found)), index_col="label", engine="python")
    pd.testing.assert_frame_equal(
        read, found.table, check_dtype=False, check_column_type=False, check_index_type=False
    )


@pytest.mark.parametrize(
    ("scale", "values", "unit"),
    [
        (SECONDS, [179.0, NAN], "s"),
        (SECONDS, [180.0, 2.0], "min"),
        (SECONDS, [3 * 3600.0], "h"),
        (BYTES, [3e6], "MB"),
        (BYTES, [2.9e9], "MB"),
        (BYTES, [NAN], "kB"),
    ],
)
def test_the_unit_is_the_largest_that_leaves_3_before_the_point(
    scale: tuple[Unit, ...], values: list[float], unit: str
) -> None:
    assert choose(scale, values).name == unit


@given(st.floats(min_value=1e-6, max_value=1e12))
def test_a_number_is_written_within_half_a_percent_of_itself(value: float) -> None:
    # three significant digits: half a unit of the third is at most 0.5 % of the first
    assert float(significant(value).replace(",", "")) == pytest.approx(value, rel=0.005001)
