"""Draws waiting times: how long devices that finish early wait for the last of their round."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import escape
from analysis.figures import bands, bars, colors, lines, style
from analysis.figures.rows import of_runs
from analysis.metrics.run_metrics import mean_waiting_s
from analysis.metrics.study import Study
from analysis.units import SECONDS


def mean_frame(study: Study) -> pd.DataFrame:
    """Return one row for each run with an aggregation: its mean wait per round."""
    frame = of_runs(
        study.runs, lambda run: pd.DataFrame([{"waiting_s": mean_waiting_s(run.rounds)}])
    )
    return frame.dropna(subset="waiting_s").reset_index(drop=True)


def round_frame(study: Study) -> pd.DataFrame:
    """Return a row for each round with an aggregation: the mean wait of its aggregated devices."""
    columns = ["round", "num_aggregated", "waiting_s"]
    return of_runs(
        study.runs, lambda run: run.rounds.loc[run.rounds["num_aggregated"] > 0, columns]
    )


def wait_frame(study: Study) -> pd.DataFrame:
    """Return a row for each aggregated update: how long its device waited for the round's end."""
    columns = ["round", "device_id", "waiting_s"]
    return of_runs(
        study.runs,
        lambda run: run.clients.loc[run.clients["outcome"] == "aggregated", columns],
    )


def plot_mean(frame: pd.DataFrame, axes: Axes, *, band: str = "range") -> None:
    """Draw a bar for each label: the mean wait per round, over seeds."""
    spread = bands.of_labels(frame, "waiting_s", band=band)
    unit = SECONDS.unit(spread["high"])
    shades = [look.color for look in colors.looks(frame).values()]
    bars.plain(axes, spread, shades, unit)
    axes.set_xlabel(f"Mean waiting time per round ({unit.name})")


def plot_rounds(frame: pd.DataFrame, axes: Axes, *, band: str = "range") -> None:
    """Draw a line for each label over its rounds, with its band over seeds."""
    unit = SECONDS.unit(frame["waiting_s"])
    for label, look in colors.looks(frame).items():
        rows = frame[frame["label"] == label]
        curve = bands.curve(rows, x="round", y="waiting_s", band=band)
        bands.plot(axes, curve, look, label=label, size=(1.0, unit.size))
    axes.set(xlabel="Round", ylabel=f"Mean waiting time ({unit.name})")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_ylim(bottom=0)
    axes.grid()
    lines.tell_apart(axes)


def plot_cdf(frame: pd.DataFrame, axes: Axes) -> None:
    """Draw a staircase for each label: the share of waits at most as long, all seeds together."""
    unit = SECONDS.unit(frame["waiting_s"])
    longest = float(frame["waiting_s"].max()) / unit.size
    for label, look in colors.looks(frame).items():
        waits = np.sort(frame.loc[frame["label"] == label, "waiting_s"].to_numpy(float)) / unit.size
        share = np.arange(1, len(waits) + 1) / len(waits)
        heights = 100 * np.array([0.0, *share, 1.0])
        at = [0.0, *waits, longest]
        lines.staircase(axes, at, heights, look, label=escape.figure(label))
    axes.set(xlabel=f"Waiting time ({unit.name})", ylabel="Share of waits up to it (%)")
    axes.set_xlim(0, longest or 1.0)
    axes.set_ylim(0, 102)
    lines.tell_apart(axes)
    axes.grid()


def draw_mean(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return a narrow figure of bars."""
    figure, axes = bars.figure(frame, paper.column_in)
    plot_mean(frame, axes, band=paper.band)
    style.legend_above(figure, [], bands.note(frame, paper.band))
    return figure


def draw_rounds(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return a narrow figure of lines."""
    plot = partial(plot_rounds, frame, band=paper.band)
    return style.one_panel(paper, plot, bands.note(frame, paper.band))


def draw_cdf(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return a narrow figure of staircases."""
    return style.one_panel(paper, partial(plot_cdf, frame))
