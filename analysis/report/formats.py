"""The table of a study for a terminal, as Markdown, as LaTeX and as CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rich.table import Table
from rich.text import Text

from analysis import escape
from analysis.metrics.study import Study
from analysis.report.table import StudyTable, TableRow, study_table


def for_terminal(table: StudyTable) -> Table:
    """Return the table for a rich console; the best value of a row is bold and starred."""
    shown = Table(caption=escape.terminal(table.note), caption_justify="left")
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
    """Return the table in Markdown with the note below it; the best value of a row is bold."""
    rows = [_escaped(row, escape.markdown, "**{}**") for row in table.rows]
    names = ["", *map(escape.markdown, table.variants)]
    return f"{markdown_grid(names, rows)}\n\n{escape.markdown(sentence(table.note))}\n"


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
            f"% {escape.latex(sentence(table.note))}",
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
        "table.csv": study.summary.to_csv(index=False, lineterminator="\n"),
        "runs.csv": study.per_run.to_csv(index_label="run", lineterminator="\n"),
    }


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
