"""The comparison as a table for eyes: metrics down, runs across, the best value of a row marked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pandas as pd
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from analysis.metrics.comparison import Comparison
from analysis.metrics.run_metrics import Target
from analysis.units import BYTES, JOULES, ONE, PERCENT, SECONDS, Unit, choose, significant

NOT_REACHED = "not reached"
NO_NUMBER = "–"


class Metric(NamedTuple):
    """One row of the table, from one column of ``Comparison.table``."""

    title: str
    column: str
    scale: tuple[Unit, ...] = (ONE,)
    best: Literal["low", "high", ""] = "low"
    write: Callable[[float], str] = significant


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _ratio(value: float) -> str:
    return f"{value:,.2f}"


TO_TARGET = (
    Metric("Time to {target}", "time_to_target_s", SECONDS),
    Metric("Speed-up over {baseline} (×)", "speed_up", best="high", write=_ratio),
    Metric("Rounds to {target}", "rounds_to_target", write=_count),
    Metric("Traffic to {target}", "bytes_to_target", BYTES),
    Metric("Energy to {target}", "energy_to_target_j", JOULES),
)
TOTALS = (
    Metric("Final accuracy", "final_accuracy", (PERCENT,), "high"),
    Metric("Best accuracy", "best_accuracy", (PERCENT,), "high"),
    Metric("Rounds", "num_rounds", best="", write=_count),
    Metric("Simulated time", "simulated_s", SECONDS, ""),
    Metric("Mean wait per round", "waiting_s", SECONDS),
    Metric("Mean memory that a plan needs", "planned_memory_bytes", BYTES),
    Metric("Highest peak memory", "peak_memory_bytes", BYTES),
    Metric("Highest peak in its budget", "peak_memory_share", (PERCENT,), ""),
    Metric("Plans that met OOM", "num_oom", write=_count),
    Metric("Plans dropped as late", "num_late", write=_count),
    Metric("Device-rounds sat out", "num_sat_out", write=_count),
    Metric("Download", "download_bytes", BYTES),
    Metric("Upload", "upload_bytes", BYTES),
    Metric("Energy", "energy_j", JOULES),
    Metric("Lost device time", "lost_work_share", (PERCENT,)),
)
LOSSES = (
    Metric("Plans lost to a device gone offline", "num_offline", write=_count),
    Metric("Plans lost to a crash", "num_crashed", write=_count),
    Metric("Uploads lost on the link", "num_lost", write=_count),
    Metric("Updates refused by the server", "num_rejected", write=_count),
)
"""Rows only where it happened at all."""


@dataclass(frozen=True)
class Line:
    """One row as text."""

    title: str
    cells: tuple[str, ...]  # one a run
    is_best: tuple[bool, ...]


def lines(comparison: Comparison) -> list[Line]:
    """Every row of the table. The rows to the target are there where there is a target."""
    target = comparison.target.accuracy
    words = {
        "target": f"{100 * target:g} % accuracy" if target is not None else "",
        "baseline": comparison.baseline.label,
    }
    table = comparison.table
    happened = tuple(m for m in LOSSES if m.column in table and table[m.column].any())
    chosen = (TO_TARGET if target is not None else ()) + TOTALS + happened
    return [_line(comparison.table, metric, metric.title.format(**words)) for metric in chosen]


def note(comparison: Comparison) -> str:
    """What the reader of the table must know."""
    return rule(comparison.target, comparison.baseline.label)


def rule(target: Target, baseline: str) -> str:
    """What is marked, and what was timed to what."""
    timed = (
        f"target {100 * target.accuracy:g} %: {target.rule}"
        if target.accuracy is not None
        else f"no target: {target.rule}"
    )
    return f"best of a row marked; {timed}; baseline {baseline}"


def rich_table(comparison: Comparison) -> Table:
    """The table for a terminal. The best value is bold and starred."""
    return to_rich(_labels(comparison), lines(comparison), note(comparison))


def markdown(comparison: Comparison) -> str:
    """The table in Markdown. The best value is bold."""
    return to_markdown(_labels(comparison), lines(comparison), note(comparison))


def latex(comparison: Comparison) -> str:
    """A ``tabular`` for booktabs. The best value is bold."""
    return to_latex(_labels(comparison), lines(comparison), note(comparison))


def to_rich(names: Sequence[str], rows: Sequence[Line], caption: str) -> Table:
    """A table of these columns for a terminal."""
    table = Table(caption=escape(caption), caption_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(escape(name), justify="right", overflow="fold")
    for line in rows:
        marked = zip(line.cells, line.is_best, strict=True)
        cells = [Text(f"{cell} *", "bold green") if best else Text(cell) for cell, best in marked]
        table.add_row(escape(line.title), *cells)
    return table


def to_markdown(names: Sequence[str], rows: Sequence[Line], caption: str) -> str:
    """A table of these columns in Markdown."""
    header = ["", *[name.replace("|", "\\|") for name in names]]
    grid = [header, ["---", *["---:"] * len(names)]]
    grid += [[line.title, *_marked(line, "**{}**")] for line in rows]
    body = "\n".join("| " + " | ".join(row) + " |" for row in grid)
    return f"{body}\n\n{_sentence(caption)}\n"


def to_latex(names: Sequence[str], rows: Sequence[Line], caption: str) -> str:
    """A ``tabular`` of these columns for booktabs."""
    grid = [["", *[_tex(name) for name in names]]]
    grid += [[_tex(line.title), *_marked(_tex_line(line), r"\textbf{{{}}}")] for line in rows]
    header, *body = [" & ".join(row) + r" \\" for row in grid]
    return "\n".join(
        [
            f"% {_sentence(caption)}",
            rf"\begin{{tabular}}{{l{'r' * len(names)}}}",
            r"\toprule",
            header,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def csv(comparison: Comparison) -> str:
    """The raw numbers: one line a run, SI units."""
    return str(comparison.table.to_csv(lineterminator="\n"))


def _line(table: pd.DataFrame, metric: Metric, title: str) -> Line:
    """One row: every cell in one unit, which stands in the title."""
    values = [float(value) for value in table[metric.column]]
    unit = choose(metric.scale, values)
    cells = tuple(
        _cell(row, value / unit.size, metric)
        for (_, row), value in zip(table.iterrows(), values, strict=True)
    )
    if metric.column == "speed_up":
        values = [
            math.nan if relation == "<" else value
            for value, relation in zip(values, table["speed_up_relation"], strict=True)
        ]
    named = f"{title} ({unit.name})" if unit.name else title
    return Line(named, cells, best(values, cells, metric.best))


def _cell(row: pd.Series[Any], value: float, metric: Metric) -> str:
    """A number as text, or why there is none."""
    if math.isnan(value):
        timed = metric in TO_TARGET and not row["is_reached"]
        return NOT_REACHED if timed else NO_NUMBER
    relation = str(row["speed_up_relation"]) if metric.column == "speed_up" else "="
    return metric.write(value) if relation == "=" else f"{relation} {metric.write(value)}"


def best(values: Sequence[float], cells: Sequence[str], direction: str) -> tuple[bool, ...]:
    """Which cells read as the best value; none where all read alike or the row has no best."""
    known = [value for value in values if not math.isnan(value)]
    if not direction or not known or len(set(cells)) == 1:
        return (False,) * len(cells)
    winner = cells[list(values).index(min(known) if direction == "low" else max(known))]
    return tuple(cell == winner for cell in cells)


def _marked(line: Line, mark: str) -> list[str]:
    return [
        mark.format(cell) if best else cell
        for cell, best in zip(line.cells, line.is_best, strict=True)
    ]


def _labels(comparison: Comparison) -> list[str]:
    return [run.label for run in comparison.runs]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _tex_line(line: Line) -> Line:
    return Line(_tex(line.title), tuple(_tex(cell) for cell in line.cells), line.is_best)


def _tex(text: str) -> str:
    """The text with LaTeX's own characters escaped."""
    for plain, escaped in (
        ("\\", r"\textbackslash "),
        *((character, "\\" + character) for character in "&%$#_{}"),
        ("×", r"$\times$"),
        ("<", "$<$"),
        (">", "$>$"),
        ("–", "--"),
        ("∞", r"$\infty$"),
        ("^", r"\^{}"),
        ("~", r"\~{}"),
    ):
        text = text.replace(plain, escaped)
    return text
