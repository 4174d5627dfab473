"""Writes the table of a study for a terminal, as Markdown, as LaTeX and as CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import pandas as pd
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from analysis import escape
from analysis.metrics.definitions import METRICS
from analysis.metrics.side_by_side import Studies
from analysis.metrics.study import Study
from analysis.report.table import StudyTable, TableRow, side_by_side

MIN_TITLE, MAX_NAME, FRAME = 24, 20, 3
"""Numbers of characters: the least width of a row's title, the greatest of a variant's name on one
line, and that of the frame around each column."""


@dataclass(frozen=True)
class TerminalTable:
    """A terminal table is that of a study for a rich console; the best of a row is starred.

    Where variants do not fit beside each other, intervals stand below their values; those that
    still do not fit stand in a further table below, with the titles of the rows again.
    """

    table: StudyTable

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        titles_wide = min(
            max((len(row.title) for row in self.table.rows), default=1),
            max(MIN_TITLE, options.max_width // 3),
        )
        table, left = self.table, options.max_width - titles_wide - FRAME - 1
        parts = _columns_that_fit(table, left)
        if parts[1:]:
            table = _with_intervals_below(table)
            parts = _columns_that_fit(table, left)
        yield from (_part(table, columns, titles_wide) for columns in parts)
        yield Text.from_markup(
            terminal_lines("\n".join([self.table.note, *self.table.warnings])), style="italic dim"
        )


def _with_intervals_below(table: StudyTable) -> StudyTable:
    """Return the table with the interval of each cell on a line of its own."""
    rows = [
        replace(row, cells=tuple(replace(c, text=c.text.replace(" [", "\n[")) for c in row.cells))
        for row in table.rows
    ]
    return replace(table, rows=tuple(rows))


def _columns_that_fit(table: StudyTable, width: int) -> list[list[int]]:
    """Return the numbers of the variants in as many groups as it takes to fit each."""
    parts: list[list[int]] = [[]]
    left = width
    for number, name in enumerate(table.variants):
        cells = [row.cells[number] for row in table.rows if row.cells]
        texts = [len(line) + 2 * cell.is_best for cell in cells for line in cell.text.splitlines()]
        wide = max([min(len(name), MAX_NAME), *texts]) + FRAME
        if wide > left and parts[-1]:
            parts.append([])
            left = width
        parts[-1].append(number)
        left -= wide
    return parts


def _part(table: StudyTable, columns: Sequence[int], titles_wide: int) -> Table:
    """Return the table of some of the variants."""
    shown = Table()
    shown.add_column("", min_width=titles_wide, max_width=titles_wide, overflow="fold")
    for number in columns:
        shown.add_column(escape.terminal(table.variants[number]), justify="right", overflow="fold")
    for row in _rows_of(table, columns):
        if not row.cells:
            shown.add_section()
            shown.add_row(Text(escape.visible(row.title), "bold"))
            continue
        cells = [
            Text(f"{cell.text} *", "bold green") if cell.is_best else Text(cell.text)
            for cell in (row.cells[number] for number in columns)
        ]
        shown.add_row(escape.terminal(row.title), *cells)
    return shown


def to_markdown(
    table: StudyTable, *, is_variant_a_row: bool = False, most_across: int | None = None
) -> str:
    """Return the table in Markdown with the note and the warnings below it.

    Metrics are down and variants across, or the other way round with ``is_variant_a_row``. Columns
    beyond ``most_across`` stand in further tables below, with the titles again.
    """
    rows = [
        _escaped(row, escape.markdown, "**{}**")
        if row.cells
        else [f"**{escape.markdown(row.title)}**", *[""] * len(table.variants)]
        for row in table.rows
    ]
    lines = [["", *map(escape.markdown, table.variants)], *rows]
    if is_variant_a_row:
        lines = [list(line) for line in zip(*lines, strict=True)]
    warnings = "".join(f"\n* {escape.markdown(line)}" for line in table.warnings)
    below = f"{escape.markdown(sentence(table.note))}\n" + (warnings and f"{warnings}\n")
    num_columns = len(lines[0]) - 1
    step = most_across or num_columns
    parts = (
        [[line[0], *line[first : first + step]] for line in lines]
        for first in range(1, num_columns + 1, step)
    )
    grids = [markdown_grid(header, rest) for header, *rest in parts]
    return "\n\n".join([*grids, below])


def markdown_grid(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, is_numeric: bool = True
) -> str:
    """Return a Markdown table of cells that are Markdown; all columns but the first are numbers."""
    rule = "---:" if is_numeric else "---"
    lines = [header, ["---", *[rule] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _rows_of(table: StudyTable, columns: Sequence[int]) -> list[TableRow]:
    """Return the rows in which one of these variants has something, and the headings of those."""
    rows: list[TableRow] = []
    heading: list[TableRow] = []
    for row in table.rows:
        if not row.cells:
            heading = [row]
        elif any(row.cells[number].text for number in columns):
            rows += [*heading, row]
            heading = []
    return rows


def to_latex(table: StudyTable) -> str:
    """Return the table as a ``tabular`` for booktabs; the best value of a row is bold."""
    header = " & ".join(["", *map(escape.latex, table.variants)]) + r" \\"
    width = len(table.variants) + 1
    body = []
    for row in table.rows:
        if row.cells:
            body.append(" & ".join(_escaped(row, escape.latex, r"\textbf{{{}}}")) + r" \\")
        else:
            rule = [r"\midrule"] if body else []
            title = escape.latex(row.title)
            body += [*rule, rf"\multicolumn{{{width}}}{{l}}{{\emph{{{title}}}}} \\"]
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


def table_files(studies: Studies) -> dict[str, str]:
    """Return the table in every format, and the numbers of every run: text by file name.

    Of several blocks, the first column of each CSV names the block.
    """
    table = side_by_side(studies)
    lines = [line for study in studies.values() for line in study.left_out]
    left_out = "".join(f"\nLeft out: {escape.markdown(line)}\n" for line in lines)

    def as_csv(frame_of: Callable[[Study], pd.DataFrame]) -> str:
        parts = {block.heading: frame_of(study) for block, study in studies.items()}
        for heading, frame in parts.items():
            if heading:
                frame.insert(0, "block", heading)
        return pd.concat(parts.values()).to_csv(index=False, lineterminator="\n")

    return {
        "table.md": to_markdown(table) + left_out,
        "table.tex": to_latex(table),
        "table.csv": as_csv(_summary),
        "differences.csv": as_csv(lambda study: study.differences),
        "runs.csv": as_csv(lambda study: study.per_run.rename_axis("run").reset_index()),
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
