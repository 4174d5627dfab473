"""Names from outside are shown as they stand in every figure, table and page."""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis.figures import (
    FIGURES,
    FigureSpec,
    availability,
    device_tables,
    link_rates,
    sensitivity,
    style,
)
from analysis.figures.choices import draw as draw_choices
from analysis.metrics.study import Study, study_of
from analysis.report.data import ReportData
from analysis.report.formats import table_files
from analysis.report.pages import to_html_page, to_markdown_page
from analysis.runs.blocks import ALONE
from analysis.runs.load import Run
from tests.torture import long, some
from traces.availability import AvailabilityTrace
from traces.bandwidth import BandwidthTrace
from traces.importers import Recording
from traces.importers.result import DeviceTable

NAMES = ("$$.csv", "a_b^c", r"\alpha", "%", "<b>", "_x", "$x^2$", r"\$1\\$")
BY_STRATEGY = ("$x$_1", r"_\alpha%", "<b>&$$")
PLACES_OF_LABELS = {spec.name for spec in FIGURES} - {"rates", "fleet"}


def drawn_texts(draw: Callable[[], Figure]) -> set[str]:
    """Return every text of a figure as a reader of its SVG finds it, without zero-width spaces."""
    with style.context():
        mpl.rcParams["svg.fonttype"] = "none"  # keeps texts as texts, instead of curves
        tree = ET.fromstring(style.render(draw(), "svg"))
    found = tree.iter("{http://www.w3.org/2000/svg}text")
    return {"".join(text.itertext()).replace("\u200b", "") for text in found}


def renamed(run: Run, label: str) -> Run:
    """Return the run under this label, with hostile names of links and devices, and some updates
    stale."""
    names = dict(enumerate(NAMES))
    clients = run.clients.assign(
        link=run.clients["device_id"].map(names),
        profile=run.clients["device_id"].map(names),
        staleness=np.arange(len(run.clients)) % 3,
        offline_s=0.2 * (run.clients["round"] % 2),
    )
    devices = run.devices.assign(
        link=run.devices["device_id"].map(names), profile=run.devices["device_id"].map(names)
    )
    manifest = {**run.manifest, "label": label}
    return replace(run, label=label, manifest=manifest, clients=clients, devices=devices)


@pytest.fixture(scope="module")
def hostile(runs: list[Run]) -> Study:
    return study_of([renamed(run, label) for run, label in zip(runs, BY_STRATEGY, strict=True)])


@pytest.mark.parametrize("spec", some(FIGURES, 4), ids=[spec.name for spec in FIGURES])
def test_every_figure_shows_the_labels_as_they_stand(hostile: Study, spec: FigureSpec) -> None:
    frame = spec.frame(hostile)
    if frame.empty:
        assert spec.name == "fleet"  # this figure names no run, and needs a config of a world
        return
    texts = drawn_texts(lambda: spec.draw(frame, style.IEEE))
    shown = set(frame["label"]) if spec.name in PLACES_OF_LABELS else set()
    starts = {text.partition(" (")[0] for text in texts}  # a score in brackets may follow the name
    assert {name for name in shown if name not in starts} == set()
    if spec.name == "ablation":
        assert any(BY_STRATEGY[0] in text for text in texts)  # the baseline
    if spec.name == "rates":
        assert set(frame["pool"]) <= texts
    if spec.name in ("gantt", "memory"):
        devices = frame.dropna(subset="device_id")[["profile", "device_id"]].drop_duplicates()
        wanted = {f"{name}  {device:.0f}" for name, device in devices.itertuples(index=False)}
        assert wanted <= texts


def test_a_figure_that_is_saved_outside_the_style_keeps_the_names(hostile: Study) -> None:
    spec = next(spec for spec in FIGURES if spec.name == "choices")
    with style.context():
        figure = draw_choices(spec.frame(hostile), style.IEEE)
    assert BY_STRATEGY[0] in drawn_texts(lambda: figure)


def test_swept_values_and_their_key_are_drawn_as_they_stand(runs: list[Run]) -> None:
    pairs = zip(NAMES, cycle(runs[:1]), strict=False)
    swept = [
        replace(run, config={**run.config, "a_$b$": name}, manifest={**run.manifest, "seed": 0})
        for name, run in pairs
    ]
    frame = sensitivity.frame(swept, "a_$b$")
    assert {*NAMES, "a_$b$"} <= drawn_texts(lambda: sensitivity.draw(frame, style.IEEE))


@long
def test_traces_and_tables_of_devices_are_drawn_by_their_names() -> None:
    link = BandwidthTrace(np.array([0.0, 1.0]), np.array([1e6, 2e6]), 2.0)
    named = {name: Recording(name, link, link) for name in NAMES}
    for frame, draw in (
        (link_rates.rate_frame(named), link_rates.draw_rate),
        (link_rates.distribution_frame(named), link_rates.draw_distribution),
    ):
        texts = drawn_texts(partial(draw, frame))
        assert all(any(name in text for text in texts) for name in NAMES)
    online = {"0": AvailabilityTrace.of([(0.0, 40_000.0)], 86_400.0)}
    files = dict.fromkeys(NAMES, online)
    for frame, draw in (
        (availability.day_frame(files), availability.draw_day),
        (availability.span_frame(files), availability.draw_spans),
    ):
        texts = drawn_texts(partial(draw, frame))
        assert all(any(name in text for text in texts) for name in NAMES)
    table = DeviceTable("x", ("device", "speed"), (("a", "1.0"), ("b", "2.0")))
    rows: pd.DataFrame = device_tables.frame(dict.fromkeys(NAMES, table))
    drawn = drawn_texts(lambda: device_tables.draw(rows))
    assert {f"{name} (2 devices)" for name in NAMES} <= drawn


IN_LATEX = {  # command or ligature -> the character that LaTeX prints for it
    r"\textbackslash{}": "\\",
    r"\textendash{}": "–",
    r"\textbar{}": "|",
    r"\^{}": "^",
    r"\~{}": "~",
    "$<$": "<",
    "$>$": ">",
    "-{}-": "--",
    **{"\\" + character: character for character in "&%$#_{}"},
}


def printed(latex: str) -> str:
    """Return what a page holds after LaTeX has read it."""
    pattern = "|".join(re.escape(command) for command in IN_LATEX)
    return re.sub(pattern, lambda found: IN_LATEX[found[0]], latex)


@pytest.mark.parametrize("label", [*BY_STRATEGY, "a|b--c", "{}~^#", "-"])
def test_tables_show_labels_as_they_stand(runs: list[Run], label: str) -> None:
    study = study_of([replace(runs[0], label=label), runs[1]])
    files = table_files({ALONE: study})
    (header,) = (row for row in files["table.tex"].splitlines() if row.startswith(" & "))
    assert printed(header) == rf" & {label} & FedQuad \\"
    (first, *_) = files["table.md"].splitlines()
    cells = re.split(r"(?<!\\)\|", first)
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", cells[2]).strip() == label


def test_the_pages_show_names_as_they_stand(hostile: Study, tmp_path: Path) -> None:
    report = ReportData(hostile, ())
    page = html.unescape(re.sub(r"<script.*?</script>", "", to_html_page(report, tmp_path)))
    markdown = re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", to_markdown_page(report))
    for name in (*BY_STRATEGY, *NAMES[: len(hostile.runs[0].devices)]):
        assert name in page
        assert name in markdown
    assert "<b>" not in to_html_page(report, tmp_path)
