"""Draws what each variant changes against the baseline: first metric, time, bytes, joules."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import escape
from analysis.figures import bands, bars, colors, style
from analysis.figures.rows import of_runs
from analysis.metrics.definitions import JUDGES
from analysis.metrics.study import Study
from analysis.runs.load import Run
from analysis.units import ONE, significant
from devices.tasks.task import Metric


class Change(NamedTuple):
    """A change is a column of the frame, with the title of its axis."""

    column: str
    title: str
    unit: str


SPENT = (
    Change("time_percent", "Change of time to target (%)", "%"),
    Change("bytes_percent", "Change of traffic (%)", "%"),
    Change("energy_percent", "Change of energy (%)", "%"),
)


def _of_metric(metric: Metric) -> Change:
    """Return the change of a task's first metric: in points of a share, else in percent."""
    unit = "points" if metric.unit == "share" else "%"
    column = f"{metric.name}_{'points' if unit == 'points' else 'percent'}"
    return Change(column, f"Change of final {metric.phrase} ({unit})", unit)


CHANGES = (*map(_of_metric, JUDGES), *SPENT)
"""Every change that a frame may have: that of its metric, and those of all that was spent."""


def frame(study: Study) -> pd.DataFrame:
    """Return one row for each run that has a baseline of its seed: its changes against it.

    The time is NaN where one of the two missed the target. Empty where there is nothing beside the
    baseline.
    """
    label, change = study.baseline, _of_metric(study.metric)
    final = f"final_{study.metric.name}"
    bases = {run.manifest["seed"]: run for run in study.runs if run.label == label}

    def changes(run: Run) -> pd.DataFrame:
        base = bases.get(run.manifest["seed"])
        if base is None or run.label == label:
            return pd.DataFrame()
        mine, theirs = study.run_row(run), study.run_row(base)
        by = 1.0 if change.unit == "points" else theirs[final]
        row = {"baseline": label, change.column: 100 * (mine[final] - theirs[final]) / by}
        measured = zip(_spent(mine), _spent(theirs), strict=True)
        for kind, (own, other) in zip(SPENT, measured, strict=True):
            row[kind.column] = 100 * (own / other - 1) if other else math.nan
        return pd.DataFrame([row])

    return of_runs(study.runs, changes)


def _spent(numbers: pd.Series[Any]) -> tuple[float, float, float]:
    """Return the seconds to the target (NaN: not reached), bytes and joules of the whole run."""
    sent = numbers["download_bytes"] + numbers["upload_bytes"]
    return float(numbers["time_to_target_s"]), float(sent), float(numbers["energy_j"])


def plot(frame: pd.DataFrame, axes: Axes, change: Change, *, band: str = "range") -> None:
    """Draw a bar for each label, to the right of the baseline's line where there is more of it."""
    spread = _spread(frame, change, band=band)
    shades = [look.color for look in colors.looks(frame).values()]
    axes.barh(range(len(spread)), spread["middle"], bars.HEIGHT, color=shades, linewidth=0)
    bars.whiskers(axes, spread, ONE)
    ends = spread.fillna(0.0).to_numpy(float)
    left, right = min(0.0, float(ends.min())), max(0.0, float(ends.max()))
    room = 0.62 * (right - left) or 1.0  # leaves space for the numbers with their unit
    axes.set_xlim(left - room * bool((spread["middle"] < 0).any()), right + room)
    for row, (low, middle, high) in enumerate(spread.to_numpy(float)):
        text = "missed by a seed" if math.isnan(middle) else f"{_signed(middle)} {change.unit}"
        end = 0.0 if math.isnan(middle) else high if middle >= 0 else low
        is_right = math.isnan(middle) or middle >= 0
        axes.annotate(
            text, (max(end, 0.0) if is_right else min(end, 0.0), row),
            (2.5 if is_right else -2.5, 0), textcoords="offset points", fontsize=7,
            va="center", ha="left" if is_right else "right",
        )  # fmt: skip
    axes.axvline(0, color=colors.BLACK, linewidth=0.8)
    axes.set_xlabel(change.title)
    bars.name_rows(axes, [str(label) for label in spread.index])


def _spread(frame: pd.DataFrame, change: Change, *, band: str) -> pd.DataFrame:
    """Return low, middle and high of a change over seeds, each by the estimate that tables have.

    Of what was spent that is the geometric mean of the ratios, so that a half and a double cancel.
    """
    everything = (-math.inf, math.inf)
    if change not in SPENT:
        return bands.of_labels(frame, change.column, band=band, possible=everything)
    # A change of -100 % (nothing was spent) has no logarithm, so the least ratio above 0 stands in.
    least = -1 + np.finfo(float).epsneg
    logs = frame.assign(log=np.log1p(np.maximum(frame[change.column] / 100, least)))
    spread = bands.of_labels(logs, "log", band=band, possible=everything)
    return spread.apply(np.expm1) * 100


def _signed(value: float) -> str:
    """Return a change with its sign, to three digits and a tenth of its unit at most."""
    sign = "+" if value >= 0 else "\N{MINUS SIGN}"
    return f"{sign}{significant(abs(value)) if abs(value) >= 100 else f'{abs(value):.1f}'}"


def draw(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return a wide figure: a panel for each change; those that no run has are left out."""
    present = [change for change in CHANGES if change.column in frame]
    columns = [change.column for change in present]
    known = frame[columns].notna().groupby(frame["label"]).all()  # True if all seeds have a number
    shown = [change for change in present if known[change.column].any()]
    figure = style.figure(paper.page_in, 0.6 + bars.ROW_IN * frame["label"].nunique())
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, change in zip(panels, shown, strict=True):
        plot(frame, axes, change, band=paper.band)
    words = f"Change against {escape.figure(frame['baseline'].iloc[0])} at the same seed"
    note = bands.note(frame, paper.band)
    style.legend_above(figure, [], f"{words}. {note}" if note else words)
    return figure
