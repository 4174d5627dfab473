"""Renders the page of a report as Markdown and as HTML, from one content and a template each.

The HTML needs nothing else: no network, no other file, and its own policy forbids it to load
anything. Both templates escape every text that they are handed (autoescape for HTML,
``escape.markdown`` for Markdown), so that labels, paths and settings are shown as they stand.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from analysis import escape
from analysis.figures import FigureSpec, style
from analysis.metrics.side_by_side import Studies
from analysis.report import data
from analysis.report.data import ReportData
from analysis.report.findings import claims, findings
from analysis.report.formats import markdown_grid, sentence, to_markdown
from analysis.report.report_plans import LANE, columns_of, inspection
from analysis.report.table import side_by_side
from analysis.runs.blocks import Block

MAX_SVG_BYTES = 400_000  # a larger drawing is embedded as PNG
WIDE_IN = 5.0  # a wider figure takes the whole width of the page
KINDS = {".svg": "image/svg+xml", ".png": "image/png"}
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline';"
    " base-uri 'none'; form-action 'none'"
)


class EmbeddedFigure(NamedTuple):
    """An embedded figure is a drawn one as the HTML page holds it."""

    name: str
    caption: str
    source: str  # the image as a data URL
    is_wide: bool


def to_markdown_page(report: ReportData) -> str:
    """Return the page in Markdown. Figures are linked as ``figures/<name>.png``."""
    template = _environment(escape.markdown, autoescape=False).get_template("report.md.jinja")
    return template.render(
        report=report,
        about=data,
        findings=findings(report.study),
        claims=claims(report.study),
        table=Markup(to_markdown(report.table).rstrip()),
        grid=_grid,
        run_rows=[
            (*line[:-1], Markup(escape.markdown_code(line.folder))) for line in report.run_lines
        ],
        block=lambda text, language: Markup(escape.markdown_block(text, language)),
    )


def to_html_page(report: ReportData, figures: Path) -> str:
    """Return the page in HTML. ``figures`` is the folder with the files of the drawn figures."""
    template = _environment(escape.visible, autoescape=True).get_template("report.html.jinja")
    # A "<" in the data could end the script element, even inside a JSON string.
    plans = json.dumps(inspection(report.runs), allow_nan=False).replace("<", "\\u003c")
    round_columns = [column.title for column in columns_of(report.runs)]
    round_columns.insert(LANE, "In time")
    return template.render(
        report=report,
        about=data,
        findings=findings(report.study),
        claims=claims(report.study),
        note=sentence(report.table.note),
        figures=[_embedded(spec, figures) for spec in report.drawn],
        policy=Markup(POLICY),
        round_columns=round_columns,
        plans=Markup(plans),
        style=Markup(_own_file("report.css")),
        script=Markup(_own_file("report.js")),
    )


def to_markdown_index(studies: Studies, links: Mapping[Block, str]) -> str:
    """Return a page in Markdown with the table of all blocks, and a link to the report of each."""
    pages = "".join(
        f"* [{escape.markdown(block.heading)}]({link.removesuffix('.html')}.md)\n"
        for block, link in links.items()
    )
    return f"# {_index_title(studies)}\n\n{to_markdown(side_by_side(studies))}\n{pages}"


def to_html_index(studies: Studies, links: Mapping[Block, str]) -> str:
    """Return a page in HTML with the table of all blocks, and a link to the report of each."""
    template = _environment(escape.visible, autoescape=True).get_template("index.html.jinja")
    table = side_by_side(studies)
    return template.render(
        title=_index_title(studies),
        table=table,
        note=sentence(table.note),
        links=[(block.heading, quote(link)) for block, link in links.items()],
        left_out=[line for study in studies.values() for line in study.left_out],
        policy=Markup(POLICY),
        style=Markup(_own_file("report.css")),
    )


def _index_title(studies: Studies) -> str:
    return f"{len(studies)} blocks of runs side by side"


def _environment(literal: Callable[[str], str], *, autoescape: bool) -> Environment:
    """Return a template environment that passes every text through ``literal``.

    Text that is marked as safe is left as it is.
    """

    def finalize(value: Any) -> Any:
        return literal(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    return Environment(
        loader=PackageLoader("analysis.report", "templates"),
        autoescape=autoescape,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    """Return a Markdown table of texts."""
    cells = [[_markdown_cell(cell) for cell in row] for row in rows]
    return Markup(markdown_grid(header, cells, is_numeric=False))


def _markdown_cell(text: str) -> str:
    return str(text) if isinstance(text, Markup) else escape.markdown(text)


def _own_file(name: str) -> str:
    return files("analysis.report").joinpath("templates", name).read_text("utf-8")


def _embedded(spec: FigureSpec, folder: Path) -> EmbeddedFigure:
    """Return the figure as an image of its own, so that ids within two drawings cannot collide."""
    svg, png = (folder / f"{spec.name}{suffix}" for suffix in KINDS)
    picture = png if is_too_large(svg) else svg
    content = picture.read_bytes()
    source = f"data:{KINDS[picture.suffix]};base64,{base64.b64encode(content).decode()}"
    return EmbeddedFigure(spec.name, spec.caption, source, _width_in(picture) > WIDE_IN)


def is_too_large(svg: Path) -> bool:
    """Tell whether a page holds the pixels of this drawing in place of its lines."""
    return svg.stat().st_size > MAX_SVG_BYTES


def _width_in(picture: Path) -> float:
    """Return the width of a drawing in inches, by its header."""
    content = picture.read_bytes()
    if picture.suffix == ".png":
        return int.from_bytes(content[16:20], "big") / style.PNG_DPI
    (width_pt,) = re.findall(rb'<svg [^>]*?width="([\d.]+)pt"', content)
    return float(width_pt) / 72.0
