"""A report as one page of HTML that needs nothing else: no network, no other file.

Whatever comes from users (labels, paths, settings, messages) is escaped; the page's own policy
forbids it to load anything.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from analysis.figures import FigureSpec
from analysis.metrics.comparison import Comparison
from analysis.metrics.study import Study
from analysis.report import page, seed_tables, tables
from analysis.report.report_plans import LANE, columns_of, inspection
from analysis.runs.load import Run
from simulator.config.experiment import flatten

MAX_SVG_BYTES = 400_000  # a larger drawing goes in as pixels
WIDE_PX = 1500  # a figure of more pixels spans the page
MAX_NAMED = 6  # runs in the title
KINDS = {".svg": "image/svg+xml", ".png": "image/png"}
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline';"
    " base-uri 'none'; form-action 'none'"
)
SECTIONS = {
    "summary": "Summary",
    "figures": "Figures",
    "rounds": "Rounds",
    "settings": "Settings",
    "provenance": "Provenance",
}


class Cell(NamedTuple):
    """One cell of a table: what it says and what it is sorted by."""

    text: str
    value: str | None = None
    kind: str = ""


@dataclass(frozen=True, eq=False)
class Judged:
    """What a report is about."""

    comparison: Comparison
    over_seeds: Study | None  # where the runs are of several seeds
    drawn: Sequence[FigureSpec]
    left_out: Sequence[str]

    @property
    def runs(self) -> list[Run]:
        """The runs by names of their own: with the seed where there are several."""
        runs = self.comparison.runs
        if self.over_seeds is None:
            return list(runs)
        return [replace(run, label=f"{run.label} s{run.manifest['seed']}") for run in runs]


def html(judged: Judged, figures: Path) -> str:
    """The page. ``figures`` is the folder with the files of the drawn figures."""
    title = _title(list(dict.fromkeys(run.label for run in judged.comparison.runs)))
    runs = judged.runs
    links = "".join(f'<a href="#{name}">{words}</a>' for name, words in SECTIONS.items())
    # "<" in data could end the script element, whatever stands around it.
    data = json.dumps(inspection(runs), allow_nan=False).replace("<", "\\u003c")
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f"<title>{escape(title)}: FedClock</title>\n<style>\n{_own('report.css')}</style>\n</head>",
        f'<body>\n<header><h1>{escape(title)}</h1><p class="faint">FedClock report: simulated'
        " clock, real training.</p></header>",
        f"<nav><div>{links}</div></nav>\n<main>",
        _problems(judged.left_out),
        _summary(judged),
        _figures(judged.drawn, figures),
        _rounds(runs),
        _settings(runs),
        _provenance(runs),
        "</main>\n<footer>Written by FedClock. The numbers behind each figure and table lie in the"
        " report folder as CSV.</footer>",
        f'<script type="application/json" id="plans">{data}</script>',
        f"<script>\n{_own('report.js')}</script>\n</body>\n</html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _title(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def _own(name: str) -> str:
    """The text of a file of the page's own."""
    return files("analysis.report").joinpath("web", name).read_text("utf-8")


def _section(name: str, *parts: str) -> str:
    return "\n".join([f'<section id="{name}"><h2>{SECTIONS[name]}</h2>', *parts, "</section>"])


def _problems(left_out: Sequence[str]) -> str:
    if not left_out:
        return ""
    return f'<section class="problems"><h2>Left out</h2>{_list(left_out)}</section>'


def _summary(judged: Judged) -> str:
    """The comparison with a row a run, or a variant over its seeds, and what it says in words."""
    comparison, over_seeds = judged.comparison, judged.over_seeds
    kinds = {run.label: run.strategy for run in comparison.runs}
    lines = seed_tables.lines(over_seeds) if over_seeds else tables.lines(comparison)
    note = seed_tables.note(over_seeds) if over_seeds else tables.note(comparison)
    findings = [] if over_seeds else page.findings(comparison)
    claims = [] if over_seeds else page.claims(comparison)
    rows = [
        [
            Cell(label),
            Cell(kinds[label], kind="text"),
            *(
                Cell(line.cells[place], _sortable(line.cells[place]), _best(line.is_best[place]))
                for line in lines
            ),
        ]
        for place, label in enumerate(over_seeds.runs.variants if over_seeds else kinds)
    ]
    head = ["variant" if over_seeds else "run", "strategy", *(line.title for line in lines)]
    return _section(
        "summary",
        _list(findings),
        _table(head, rows, name="comparison", num_text=2),
        f'<p class="note">{escape(note.replace("a row", "a column"))}</p>',
        "<h3>What was run</h3>",
        _list(page.facts(comparison.runs)),
        "<h3>How to read it</h3>",
        _list(page.READING),
        *(["<h3>Beside the authors' claims</h3>", _words(page.RECONSTRUCTION)] if claims else []),
        _list(claims),
    )


def _sortable(text: str) -> str:
    """The first number in a cell of the comparison; empty where there is none."""
    found = re.match(r"[<>\s]*(-?[\d,]+(?:\.\d+)?)", text)
    return found[1].replace(",", "") if found else ""


def _best(is_best: bool) -> str:
    return "best" if is_best else ""


def _figures(drawn: Sequence[FigureSpec], folder: Path) -> str:
    shown = [_figure(spec, folder) for spec in drawn]
    return _section("figures", '<div class="figures">', *shown, "</div>")


def _figure(spec: FigureSpec, folder: Path) -> str:
    """As an image of its own, so that names within two drawings cannot collide."""
    svg, png = (folder / f"{spec.name}{suffix}" for suffix in KINDS)
    picture = svg if svg.is_file() and svg.stat().st_size <= MAX_SVG_BYTES else png
    data = base64.b64encode(picture.read_bytes()).decode()
    source = f"data:{KINDS[picture.suffix]};base64,{data}"
    width = int.from_bytes(png.read_bytes()[16:20], "big")  # of a PNG's header
    kind = ' class="page"' if width > WIDE_PX else ""
    return (
        f'<figure{kind}><img alt="{escape(spec.name)}" src="{source}">'
        f"<figcaption>{escape(spec.caption)}</figcaption></figure>"
    )


def _rounds(runs: Sequence[Run]) -> str:
    """Where a round is chosen; the page's script fills in the rest."""
    options = "".join(
        f'<option value="{place}">{escape(run.label)}</option>' for place, run in enumerate(runs)
    )
    key = "".join(
        f'<span class="key {kind}"></span>{words}'
        for kind, words in {
            "download": "download",
            "train": "training",
            "upload": "upload",
            "wait": "wait",
        }.items()
    )
    head = [column.title for column in columns_of(runs)]
    head.insert(LANE, "in time")
    return _section(
        "rounds",
        f'<div class="choose"><label>Run <select id="run">{options}</select></label>'
        '<label>Round <input id="round" type="number" min="0" value="1" inputmode="numeric">'
        ' <span id="last" class="faint"></span></label>'
        '<span><button id="earlier" type="button" aria-label="earlier round">&larr;</button> '
        '<button id="later" type="button" aria-label="later round">&rarr;</button></span></div>',
        '<dl class="facts" id="facts"></dl>',
        f'<p class="note">The plans handed out in this round. {key}</p>',
        _table(head, [], name="devices", num_text=5),
        '<p id="nobody" class="note" hidden></p>',
    )


def _settings(runs: Sequence[Run]) -> str:
    """The resolved configs, a column a run; what differs is marked."""
    configs = [flatten(run.config) for run in runs]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    rows, kinds = [], []
    for key in keys:
        values = [_setting(config[key]) if key in config else "" for config in configs]
        rows.append([Cell(key), *(Cell(value, kind="long") for value in values)])
        kinds.append("differs" if len(set(values)) > 1 else "")
    return _section(
        "settings",
        '<div class="choose"><label><input type="checkbox" id="only"> only what differs</label>'
        f'<span class="faint">{sum(map(bool, kinds))} of {len(keys)} settings differ</span></div>',
        _table(
            ["setting", *(run.label for run in runs)],
            rows,
            kinds=kinds,
            name="settings-table",
            num_text=1 + len(runs),
        ),
    )


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _provenance(runs: Sequence[Run]) -> str:
    """Every entry of the manifests, a column a run, and where the run folder was."""
    manifests = [{"folder": run.path.as_posix(), **flatten(run.manifest)} for run in runs]
    keys = list(dict.fromkeys(key for manifest in manifests for key in manifest))
    values = [[_setting(manifest.get(key)) for manifest in manifests] for key in keys]
    rows = [
        [Cell(key), *(Cell(value, kind="long") for value in row)]
        for key, row in zip(keys, values, strict=True)
    ]
    kinds = ["differs" if len(set(row)) > 1 else "" for row in values]
    head = ["entry", *(run.label for run in runs)]
    table = _table(head, rows, kinds=kinds, name="manifests", num_text=len(head))
    return _section("provenance", table)


def _table(
    head: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    name: str,
    num_text: int,
    kinds: Sequence[str] = (),
) -> str:
    """A table that sorts by any column; the first cell of a row is its name.

    The first ``num_text`` columns are words.
    """
    titles = "".join(
        f'<th class="{"text " * (place < num_text)}words" scope="col">'
        f'<button type="button">{escape(title)}</button></th>'
        for place, title in enumerate(head)
    )
    body = []
    for place, row in enumerate(rows):
        kind = f' class="{kinds[place]}"' if kinds and kinds[place] else ""
        first, *others = row
        cells = "".join(map(_cell, others))
        body.append(f'<tr{kind}><th scope="row">{escape(first.text)}</th>{cells}</tr>')
    lines = "\n".join(body)
    return (
        f'<div class="wide"><table id="{name}"><thead><tr>{titles}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _cell(cell: Cell) -> str:
    value = "" if cell.value is None else f' data-v="{escape(cell.value)}"'
    kind = f' class="{cell.kind}"' if cell.kind else ""
    return f"<td{kind}{value}>{escape(cell.text)}</td>"


def _words(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _list(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if lines else ""
