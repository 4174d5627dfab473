"""Writes the table of a study for a terminal, as Markdown, as LaTeX and as CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pandas as pd
from rich.table import Table
from rich.text import Text

from analysis import escape
from analysis.metrics.definitions import METRICS
from analysis.metrics.study import Study
from analysis.report.table import StudyTable, TableRow, study_table


def for_terminal(table: StudyTable) -> Table:
    """Return the table for a rich console; the best value of a row is bold and starred."""
    caption = "\n".join([table.note, *table.warnings])
    shown = Table(caption=terminal_lines(caption), caption_justify="left")
    shown.add_column("")
    for name in table.variants:
        shown.add_column(escape.terminal(name), justify="right", overflow="fold")
    for row in table.rows:
        cells = [
            Text(f"{cell.text} *", "bold green") if cell.is_best else Text(cell.text)
            for cell in row.cells
        ]
        shown.add_row(escape.terminal(row.title), *cells)
    return shown


def to_markdown(table: StudyTable) -> str:
    """Return the table in Markdown with the note and the warnings below it."""
    rows = [_escaped(row, escape.markdown, "**{}**") for row in table.rows]
    names = ["", *map(escape.markdown, table.variants)]
    warnings = "".join(f"\n* {escape.markdown(line)}" for line in table.warnings)
    below = f"{escape.markdown(sentence(table.note))}\n" + (warnings and f"{warnings}\n")
    return f"{markdown_grid(names, rows)}\n\n{below}"


def markdown_grid(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, is_numeric: bool = True
) -> str:
    """Return a Markdown table of cells that are Markdown; all columns but the first are numbers."""
    rule = "---:" if is_numeric else "---"
    lines = [header, ["---", *[rule] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def to_latex(table: StudyTable) -> str:
    """Return the table as a ``tabular`` for booktabs; the best value of a row is bold."""
    rows = [_escaped(row, escape.latex, r"\textbf{{{}}}") for row in table.rows]
    header, *body = [
        " & ".join(row) + r" \\" for row in [["", *map(escape.latex, table.variants)], *rows]
    ]
    return "\n".join(
        [
            *(f"% {escape.latex(line)}" for line in (sentence(table.note), *table.warnings)),
            rf"\begin{{tabular}}{{l{'r' * len(table.variants)}}}",
            r"\toprule",
            header,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def table_files(study: Study) -> dict[str, str]:
    """Return the table in every format, and the numbers of every run: text by file name."""
    table = study_table(study)
    left_out = "".join(f"\nLeft out: {escape.markdown(line)}\n" for line in study.left_out)
    return {
        "table.md": to_markdown(table) + left_out,
        "table.tex": to_latex(table),
        "table.csv": _summary(study).to_csv(index=False, lineterminator="\n"),
        "differences.csv": study.differences.to_csv(index=False, lineterminator="\n"),
        "runs.csv": study.per_run.to_csv(index_label="run", lineterminator="\n"),
    }


def terminal_lines(text: str) -> str:
    """Return the lines for a rich console, each as it stands."""
    return "\n".join(escape.terminal(line) for line in text.split("\n"))


def _summary(study: Study) -> pd.DataFrame:
    """Return the summary, and of the further targets what it takes to reach them."""
    to_target = [metric.column for metric in METRICS if metric.is_to_target]
    parts = [study.summary.assign(target=study.target.value)]
    for other in study.others:
        rows = other.summary[other.summary["metric"].isin(to_target)]
        parts.append(rows.assign(target=other.target.value))
    return pd.concat(parts, ignore_index=True)


def sentence(text: str) -> str:
    """Return the text with a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def _escaped(row: TableRow, literal: Callable[[str], str], mark: str) -> list[str]:
    """Return the texts of a row, escaped, with the best value marked."""
    cells = [
        mark.format(literal(cell.text)) if cell.is_best else literal(cell.text)
        for cell in row.cells
    ]
    return [literal(row.title), *cells]
