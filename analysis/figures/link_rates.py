"""Draws the rates of links: over time, and as distributions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import escape
from analysis.figures import colors, lines, style
from analysis.units import SECONDS
from traces.bandwidth import BandwidthTrace
from traces.importers import Recording
from traces.statistics import rate_distribution
from traces.units import BYTES_PER_S_PER_MBPS

DIRECTIONS = {"down": colors.BLUE, "up": colors.VERMILLION}


def rate_frame(links: Mapping[str, Recording]) -> pd.DataFrame:
    """Return a row for each step: link, direction, time_s, end_s, rate_mbps, mean_mbps."""
    parts = [
        pd.DataFrame(
            {
                "link": name,
                "direction": direction,
                "time_s": trace.time_s,
                "end_s": np.append(trace.time_s[1:], trace.period_s),
                "rate_mbps": trace.rate_bytes_per_s / BYTES_PER_S_PER_MBPS,
                "mean_mbps": trace.mean_bytes_per_s / BYTES_PER_S_PER_MBPS,
            }
        )
        for name, direction, trace in _directions(links)
    ]
    return pd.concat(parts, ignore_index=True)


def draw_rate(frame: pd.DataFrame, paper: style.Paper = style.IEEE) -> Figure:
    """Return a panel for each link, on a scale of its own, with both directions in it."""
    names = list(dict.fromkeys(frame["link"]))
    figure = style.figure(paper.page_in, 0.45 + 0.9 * len(names))
    panels = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    units = [SECONDS.unit(frame["end_s"][frame["link"] == name]) for name in names]
    for axes, name, unit, below in zip(panels, names, units, [*units[1:], None], strict=True):
        rows = frame[frame["link"] == name]
        for direction, color in DIRECTIONS.items():
            own = rows[rows["direction"] == direction]
            if not own.empty:
                _steps(axes, own, unit.size, color)
        axes.set_title(_title(name, rows), loc="left", pad=2)
        axes.set_xlim(0, rows["end_s"].max() / unit.size)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_ylabel("Mbit/s")
        if unit != below:  # panels with the same unit share the label of the lowest one
            axes.set_xlabel(f"Time ({unit.name})", labelpad=1)
        axes.grid(axis="y")
    shown = [one for one in DIRECTIONS if (frame["direction"] == one).any()]
    style.legend_above(figure, [style.legend_line(DIRECTIONS[one], f"{one}link") for one in shown])
    return figure


def distribution_frame(links: Mapping[str, Recording]) -> pd.DataFrame:
    """Return a row for each rate: link, direction, rate_mbps, share of time at or below it."""
    parts = []
    for name, direction, trace in _directions(links):
        rates, share = rate_distribution(trace)
        parts.append(
            pd.DataFrame(
                {
                    "link": name,
                    "direction": direction,
                    "rate_mbps": rates / BYTES_PER_S_PER_MBPS,
                    "share_of_time": share,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def draw_distribution(frame: pd.DataFrame, paper: style.Paper = style.IEEE) -> Figure:
    """Return a panel for each direction; what lies left of its edge is time close to an outage."""
    shown = [one for one in DIRECTIONS if (frame["direction"] == one).any()]
    color_of = colors.palette(frame["link"])
    width_in = paper.page_in if len(shown) > 1 else paper.column_in
    figure = style.figure(width_in, 1.95)
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for axes, direction in zip(panels, shown, strict=True):
        rows = frame[frame["direction"] == direction]
        high = rows["rate_mbps"].max()
        low = max(rows["rate_mbps"][rows["rate_mbps"] > 0].min(), high / 1e3)
        for name, own in rows.groupby("link", sort=False):
            rates = np.append(np.maximum(own["rate_mbps"], low / 10), 2 * high)
            share = np.append(own["share_of_time"], 1.0)
            axes.step(rates, 100 * share, where="post", color=color_of[str(name)])
        axes.set(xscale="log", xlim=(low / 1.15, 1.15 * high), ylim=(0, 102))
        style.plain_log_axis(axes.xaxis)
        axes.set_xlabel(f"{direction.capitalize()}link rate (Mbit/s)")
        axes.grid()
        lines.tell_apart(axes)
    panels[0].set_ylabel("Share of time at or below (%)")
    style.legend_above(
        figure, [style.legend_line(color, escape.figure(name)) for name, color in color_of.items()]
    )
    return figure


def _directions(links: Mapping[str, Recording]) -> list[tuple[str, str, BandwidthTrace]]:
    """Return (link, direction, trace) for every direction that was measured."""
    pairs = [
        (name, direction, trace)
        for name, link in links.items()
        for direction, trace in (("down", link.downlink), ("up", link.uplink))
    ]
    return [(name, direction, trace) for name, direction, trace in pairs if trace is not None]


def _steps(axes: Axes, rows: pd.DataFrame, unit_s: float, color: str) -> None:
    """Draw the rate as a staircase."""
    edges = np.append(rows["time_s"], rows["end_s"].iloc[-1]) / unit_s
    axes.stairs(rows["rate_mbps"], edges, baseline=None, color=color, linewidth=0.8)


def _title(name: str, rows: pd.DataFrame) -> str:
    means = rows.groupby("direction")["mean_mbps"].first()
    words = [f"{means[one]:.3g} {one}" for one in DIRECTIONS if one in means]
    return f"{escape.figure(name)}: mean {', '.join(words)} (Mbit/s)"
