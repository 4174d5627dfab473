"""Draws metric and loss of the global model against time, rounds, bytes and joules."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import units
from analysis.figures import bands, colors, lines, style
from analysis.figures.rows import of_runs
from analysis.metrics.definitions import scale_of
from analysis.metrics.study import Study
from analysis.runs.load import Run
from analysis.units import BYTES, JOULES, PERCENT, PLAIN, SECONDS, Scale, Unit
from devices.tasks.registry import UNNAMED_METRIC
from devices.tasks.task import Metric


class Quantity(NamedTuple):
    """A quantity is a column that can stand on an axis, with its title, units and range."""

    column: str
    name: str
    scale: Scale
    possible: tuple[float, float] = bands.AT_LEAST_NOTHING

    def unit(self, frame: pd.DataFrame) -> Unit:
        """Return the unit for all values of the frame."""
        return self.scale.unit(frame[self.column])

    def title(self, unit: Unit) -> str:
        """Return the name with the unit."""
        return units.title(self.name, unit)


def judge(metric: Metric) -> Quantity:
    """Return the first metric of a task as it stands on an axis."""
    return Quantity(metric.name, f"Test {metric.phrase}", scale_of(metric), metric.possible)


JUDGE = judge(UNNAMED_METRIC)
LOSS = Quantity("loss", "Test loss", PLAIN)
TIME = Quantity("closed_s", "Simulated time", SECONDS)
ROUND = Quantity("round", "Round", PLAIN)
TRAFFIC = Quantity("transferred_bytes", "Cumulative traffic, both ways", BYTES)
DOWNLOAD = Quantity("downloaded_bytes", "Cumulative download", BYTES)
UPLOAD = Quantity("uploaded_bytes", "Cumulative upload", BYTES)
ENERGY = Quantity("spent_j", "Cumulative energy of all devices", JOULES)


def progress(study: Study) -> pd.DataFrame:
    """Return one row for each round: its end, bytes and joules so far, metric and loss."""
    return of_runs(study.runs, _progress)


def frame(study: Study) -> pd.DataFrame:
    """Return the evaluated rounds of ``progress``, with the target and the majority class."""
    rows = progress(study)
    shares = {run.label: run.manifest["data"].get("majority_share") for run in study.runs}
    return (
        rows[rows[study.metric.name].notna()]
        .assign(
            target=study.target.value,
            majority_share=lambda rows: rows["label"].map(shares),
        )
        .reset_index(drop=True)
    )


def _progress(run: Run) -> pd.DataFrame:
    rounds = run.rounds
    down, up = rounds["download_bytes"].cumsum(), rounds["upload_bytes"].cumsum()
    return rounds[["round", "closed_s", run.metric.name, "loss"]].assign(
        downloaded_bytes=down,
        uploaded_bytes=up,
        transferred_bytes=down + up,
        spent_j=rounds["energy_j"].cumsum(),
    )


def plot(
    frame: pd.DataFrame,
    axes: Axes,
    *,
    x: Quantity = TIME,
    y: Quantity = JUDGE,
    band: str = "range",
) -> None:
    """Draw a line for each label with its band over seeds, and marks at evaluations."""
    across, up = x.unit(frame), y.unit(frame)
    for label, look in colors.looks(frame).items():
        rows = frame[frame["label"] == label]
        curve = bands.curve(rows, x=x.column, y=y.column, band=band, possible=y.possible)
        bands.plot(axes, curve, look, label=label, size=(across.size, up.size))
    axes.set(xlabel=x.title(across), ylabel=y.title(up))
    axes.set_xlim(left=0)
    axes.grid()
    lines.tell_apart(axes)


def plot_levels(frame: pd.DataFrame, axes: Axes, unit: Unit) -> None:
    """Draw the target and the share of the most frequent class as thin named lines."""
    for column, words in (("target", "target"), ("majority_share", "majority class")):
        level = pd.to_numeric(frame[column]).max() / unit.size
        if not pd.isna(level):
            lines.name_level(axes, level, f"{words} {level:.3g} {unit.name}".rstrip())


def draw(frame: pd.DataFrame, paper: style.Paper, *, x: Quantity, y: Quantity) -> Figure:
    """Return a narrow figure of one quantity against another."""

    def fill(axes: Axes) -> None:
        plot(frame, axes, x=x, y=y, band=paper.band)
        if y != LOSS:
            if y.scale is PERCENT:
                axes.set_ylim(bottom=0)
            plot_levels(frame, axes, y.unit(frame))

    return style.one_panel(paper, fill, bands.note(frame, paper.band))
