"""Draws when devices are online: over the hours of the day, and how long spans last."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from analysis import escape
from analysis.figures import colors, lines, style
from traces.availability import AvailabilityTrace
from traces.statistics import online_share_by_hour, spans


def day_frame(files: Mapping[str, Mapping[str, AvailabilityTrace]]) -> pd.DataFrame:
    """Return one row for each hour of the day: source, num_devices, hour, share_online."""
    parts = [
        pd.DataFrame(
            {
                "source": name,
                "num_devices": len(devices),
                "hour": np.arange(24),
                "share_online": online_share_by_hour(devices.values()),
            }
        )
        for name, devices in files.items()
    ]
    return pd.concat(parts, ignore_index=True)


def draw_day(frame: pd.DataFrame, paper: style.Paper = style.IEEE) -> Figure:
    """Draw a line for each source: the share of its devices online in each hour of the day."""
    figure = style.figure(paper.column_in, 1.9)
    axes = figure.subplots()
    handles = []
    color_of = colors.palette(frame["source"])
    for name, rows in frame.groupby("source", sort=False):
        color = color_of[str(name)]
        share = 100 * rows["share_online"].to_numpy()
        axes.stairs(share, np.arange(25), color=color, linewidth=1.2, baseline=None)
        number = int(rows["num_devices"].iloc[0])
        handles.append(
            style.legend_line(
                color, f"{escape.figure(str(name))} ({number:,} device{'s' * (number != 1)})"
            )
        )
    axes.set(xlabel="Hour of the day", ylabel="Online (% of time)", xlim=(0, 24))
    axes.set_ylim(0, 1.1 * max(1.0, 100 * frame["share_online"].max()))
    axes.xaxis.set_major_locator(MultipleLocator(4))
    axes.grid()
    style.legend_above(figure, handles)
    return figure


def span_frame(files: Mapping[str, Mapping[str, AvailabilityTrace]]) -> pd.DataFrame:
    """Return a row for each length of span that occurs: source, state, length_s, share up to it."""
    parts = [
        pd.DataFrame(columns=["source", "state", "length_s", "share_of_spans"]).astype(
            {"length_s": float, "share_of_spans": float}
        )
    ]
    for name, devices in files.items():
        found = [spans(device) for device in devices.values()]
        for state in ("online", "offline"):
            lengths = np.concatenate([getattr(one, f"{state}_s") for one in found])
            if len(lengths) == 0:
                continue
            values, counts = np.unique(lengths, return_counts=True)
            share = np.cumsum(counts) / counts.sum()
            columns = {"source": name, "state": state, "length_s": values, "share_of_spans": share}
            parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def draw_spans(frame: pd.DataFrame, paper: style.Paper = style.IEEE) -> Figure:
    """Draw the distribution of the lengths of spans: a line for online, dashed for offline."""
    color_of = colors.palette(frame["source"])
    figure = style.figure(paper.column_in, 1.9)
    axes = figure.subplots()
    for name, color in color_of.items():
        for state, dashes in (("online", "-"), ("offline", (0, (4, 2)))):
            own = frame[(frame["source"] == name) & (frame["state"] == state)]
            axes.step(
                own["length_s"],
                100 * own["share_of_spans"],
                where="post",
                color=color,
                linestyle=dashes,
            )
    axes.set(xscale="log", xlabel="Length of a span", ylim=(0, 102))
    axes.set_ylabel("Spans at most as long (%)")
    marks = {1: "1 s", 60: "1 min", 3600: "1 h", 86400: "1 d", 604800: "1 week"}
    axes.set_xticks(list(marks), list(marks.values()))
    axes.minorticks_off()
    axes.set_xlim(frame["length_s"].min() / 1.3, 1.3 * frame["length_s"].max())
    axes.grid()
    lines.tell_apart(axes)
    handles = [style.legend_line(color, escape.figure(name)) for name, color in color_of.items()]
    dashed = Line2D([], [], color=colors.GREY, linestyle=(0, (4, 2)), label="offline")
    style.legend_above(figure, [*handles, style.legend_line(colors.GREY, "online"), dashed])
    return figure
