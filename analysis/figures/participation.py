"""Draws how often devices' updates were merged, and how stale the updates were."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import escape
from analysis.figures import bands, colors, lines, style
from analysis.figures.rows import of_runs
from analysis.metrics.study import Study
from analysis.runs.load import Run


def device_frame(study: Study) -> pd.DataFrame:
    """Return one row for each run and device of the fleet: its plans, and how many were merged."""
    return of_runs(study.runs, _devices)


def _devices(run: Run) -> pd.DataFrame:
    plans = run.clients.groupby("device_id")["outcome"]
    fleet = run.devices[["device_id", "profile", "memory_budget_bytes"]].reset_index(drop=True)
    counts = {
        "num_plans": plans.size(),
        "num_aggregated": plans.apply(lambda outcomes: int((outcomes == "aggregated").sum())),
    }
    return fleet.assign(
        **{
            name: fleet["device_id"].map(count).fillna(0).astype(int)
            for name, count in counts.items()
        }
    )


def staleness_frame(study: Study) -> pd.DataFrame:
    """Return one row for each run and staleness: how many merged updates were so stale.

    Runs in which no update was stale are left out: there is nothing to show of plain rounds.
    """
    oldest = max((int(_merged(run).max()) for run in study.runs if _is_stale(run)), default=0)
    return of_runs(
        study.runs,
        lambda run: _staleness(run, oldest) if _is_stale(run) else pd.DataFrame(),
    )


def _staleness(run: Run, oldest: int) -> pd.DataFrame:
    count = np.bincount(_merged(run).to_numpy(int), minlength=oldest + 1)
    return pd.DataFrame(
        {"staleness": np.arange(oldest + 1), "num_updates": count, "share": count / count.sum()}
    )


def _is_stale(run: Run) -> bool:
    return "staleness" in run.clients and bool((_merged(run) > 0).any())


def _merged(run: Run) -> pd.Series[int]:
    return run.clients.loc[run.clients["outcome"] == "aggregated", "staleness"]


def plot_devices(frame: pd.DataFrame, axes: Axes) -> None:
    """Draw a staircase for each label: the share of devices with at most so many merged updates.

    All seeds together. A staircase starts at the share of devices that were never merged.
    """
    most = int(frame["num_aggregated"].max())
    counts = np.arange(most + 1)
    for label, look in colors.looks(frame).items():
        merged = np.sort(frame.loc[frame["label"] == label, "num_aggregated"].to_numpy())
        share = np.searchsorted(merged, counts, side="right") / len(merged)
        at, heights = [-1, *counts, most + 1], 100 * np.array([0.0, *share, 1.0])
        lines.staircase(axes, at, heights, look, label=escape.figure(label))
    axes.set(xlabel="Updates merged of a device, k", ylabel="Devices merged at most\nk times (%)")
    axes.set_xlim(-0.5, most + 0.5)
    axes.set_ylim(0, 102)
    lines.tell_apart(axes)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.grid()


def plot_staleness(frame: pd.DataFrame, axes: Axes, *, band: str = "range") -> None:
    """Draw a line for each label: the share of merged updates of each staleness."""
    for label, look in colors.looks(frame).items():
        rows = frame[frame["label"] == label].assign(percent=lambda rows: 100 * rows["share"])
        curve = bands.curve(rows, x="staleness", y="percent", band=band, possible=(0.0, 100.0))
        bands.plot(axes, curve, look, label=label, size=(1.0, 1.0))
    axes.set(xlabel="Staleness (aggregations since the broadcast)", ylabel="Merged updates (%)")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.grid()


def draw_devices(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return a narrow figure."""
    return style.one_panel(paper, partial(plot_devices, frame))


def draw_staleness(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return a narrow figure."""
    plot = partial(plot_staleness, frame, band=paper.band)
    return style.one_panel(paper, plot, bands.note(frame, paper.band))
