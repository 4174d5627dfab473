"""Draws what devices met: the rates of their transfers, and plans that they were offline for."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import escape
from analysis.figures import bars, colors, lines, style
from analysis.figures.rows import of_runs
from analysis.metrics.study import Study
from analysis.runs.load import Run
from analysis.units import PERCENT

BITS_PER_MBIT = 1e6
DIRECTIONS = ("download", "upload")
MAX_POOLS = 8
OFFLINE: bars.Parts = {
    "share_paused": ("paused", colors.SKY),
    "share_lost": ("lost", colors.VERMILLION),
}


def rate_frame(study: Study) -> pd.DataFrame:
    """Return one row for each finished transfer: device, link, pool, direction, start and rate.

    A pool is a link's name without its number: lte-3 is of lte.
    """
    return of_runs(study.runs, _rates)


def _rates(run: Run) -> pd.DataFrame:
    plans = run.clients
    parts = []
    for direction in DIRECTIONS:
        sent, took_s = plans[f"{direction}_bytes"], plans[f"{direction}_s"]
        rows = plans.loc[(sent > 0) & (took_s > 0), ["round", "device_id", "link", "started_s"]]
        rate_mbps = 8 * sent / took_s.where(took_s > 0) / BITS_PER_MBIT
        parts.append(rows.assign(direction=direction, rate_mbps=rate_mbps))
    frame = pd.concat(parts, ignore_index=True)
    return frame.assign(pool=frame["link"].astype(str).str.replace(r"-\d+$", "", regex=True))


def offline_frame(study: Study) -> pd.DataFrame:
    """Return one row for each run: the shares of its plans that an offline device paused, and lost.

    The frame is empty where that happened to no plan.
    """
    frame = of_runs(study.runs, _offline)
    return frame if frame[list(OFFLINE)].any(axis=None) else pd.DataFrame()


def _offline(run: Run) -> pd.DataFrame:
    plans = run.clients
    is_lost = plans["outcome"] == "offline"
    was_away = plans.get("offline_s", 0.0 * plans["started_s"]) > 0
    shares = {"share_paused": (was_away & ~is_lost).mean(), "share_lost": is_lost.mean()}
    return pd.DataFrame([{"num_plans": len(plans), **shares}])


def plot_rates(frame: pd.DataFrame, axes: Axes) -> None:
    """Draw a staircase for each pool: the share of one direction's transfers at most as fast."""
    pools = sorted(frame["pool"].unique())
    for place, pool in enumerate(pools):
        rates = np.sort(frame.loc[frame["pool"] == pool, "rate_mbps"].to_numpy(float))
        share = 100 * np.arange(1, len(rates) + 1) / len(rates)
        axes.step(
            [rates[0], *rates, 10 * frame["rate_mbps"].max()],
            [0.0, *share, 100.0],
            where="post",
            color=list(colors.COLORS.values())[place % len(colors.COLORS)],
            linestyle=colors.DASHES[place % len(colors.DASHES)],
            label=escape.figure(pool),
        )
    low, high = frame["rate_mbps"].min(), frame["rate_mbps"].max()
    axes.set(xscale="log", xlim=(low / 1.2, 1.2 * high), ylim=(0, 102))
    style.plain_log_axis(axes.xaxis)
    axes.set_ylabel("Share of transfers up to it (%)")
    axes.grid()
    lines.tell_apart(axes)


def plot_offline(frame: pd.DataFrame, axes: Axes, *, band: str = "range") -> None:
    """Draw a bar for each label: the shares of plans that an offline device paused, and lost."""
    unit = bars.stack(frame, axes, OFFLINE, scale=PERCENT, band=band)
    axes.set_xlabel(f"Plans paused or lost offline ({unit.name})")


def draw_rates(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return a wide figure: left downloads, right uploads; the pools with the most transfers."""
    most = frame["pool"].value_counts().sort_index().nlargest(MAX_POOLS).index
    shown = frame[frame["pool"].isin(most)]
    figure = style.figure(paper.page_in, 1.9)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, direction in zip(panels, DIRECTIONS, strict=True):
        rows = shown[shown["direction"] == direction]
        if rows.empty:
            axes.set_visible(False)
            continue
        plot_rates(rows, axes)
        axes.set_xlabel(f"Mean rate of a whole {direction} (Mbit/s)")
    panels[1].set_ylabel("")
    handles: dict[str, Artist] = {}
    for axes in panels:
        handles |= {str(one.get_label()): one for one in style.labelled(axes)}
    style.legend_above(figure, list(handles.values()))
    return figure


def draw_offline(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return a narrow figure; what happened to no plan is not named."""
    return bars.stacked_figure(frame, paper, plot_offline, OFFLINE)
