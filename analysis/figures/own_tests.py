"""Draws how devices' models do on the test data that each device kept for itself."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import escape
from analysis.figures import colors, lines, style
from analysis.figures.rows import of_runs
from analysis.metrics.definitions import scale_of
from analysis.metrics.study import Study
from analysis.runs.load import Run
from analysis.units import title
from devices.tasks.task import Metric


def frame(study: Study, *, metric: Metric) -> pd.DataFrame:
    """Return one row for each run and device with own test data, worst first: the metric on them.

    The frame is empty where no run tested its devices.
    """
    return of_runs(study.runs, partial(_devices, metric=metric))


def _devices(run: Run, metric: Metric) -> pd.DataFrame:
    column = f"own_{metric.name}"
    if column not in run.devices:
        return pd.DataFrame()
    found = run.devices[["device_id", "profile", column]].dropna()
    return found.sort_values([column, "device_id"], ascending=[metric.better == "higher", True])


def plot(frame: pd.DataFrame, axes: Axes, *, metric: Metric) -> None:
    """Draw a staircase for each label: the share of devices that do no better than a value.

    All seeds together.
    """
    unit = scale_of(metric).units[0]
    column = f"own_{metric.name}"
    is_higher = metric.better == "higher"
    for label, look in colors.looks(frame).items():
        values = np.sort(frame.loc[frame["label"] == label, column].to_numpy(float)) / unit.size
        values = values if is_higher else values[::-1]
        shares = 100 * np.arange(len(values) + 1) / len(values)
        lines.staircase(axes, [values[0], *values], shares, look, label=escape.figure(label))
    axes.set(
        xlabel=title(f"{metric.title} on own test data", unit),
        ylabel="Devices that do no better (%)",
    )
    if not is_higher:
        axes.invert_xaxis()  # so that the worst values lie at the left for every metric
    axes.set_ylim(0, 102)
    lines.tell_apart(axes)
    axes.grid()


def draw(frame: pd.DataFrame, paper: style.Paper, *, metric: Metric) -> Figure:
    """Return a narrow figure."""
    return style.one_panel(paper, partial(plot, frame, metric=metric))
