"""Traces as pictures: rate over time, its distribution, and availability over the day.

No part of a run's report. A figure is drawn from its frame alone, as in the rest of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, MultipleLocator

from analysis import escape
from analysis.figures import device_tables, style
from analysis.units import SECONDS
from traces.availability import AvailabilityTrace
from traces.bandwidth import BandwidthTrace
from traces.importers import Recording
from traces.importers.result import DeviceTable
from traces.statistics import online_share_by_hour, rate_distribution, spans
from traces.units import BYTES_PER_S_PER_MBPS

MAX_LINKS = 8
DIRECTIONS = {"down": style.BLUE, "up": style.VERMILLION}
PALETTE = (
    style.BLUE,
    style.VERMILLION,
    style.GREEN,
    style.PURPLE,
    style.SKY,
    style.ORANGE,
    style.BLACK,
    style.GREY,
)


def render_all(
    links: Mapping[str, Recording],
    files: Mapping[str, Mapping[str, AvailabilityTrace]],
    tables: Mapping[str, DeviceTable],
) -> dict[str, bytes]:
    """File name -> content: each figure that applies in every format, and the CSV behind it.

    Links give ``rate`` and ``distribution``, availability ``day`` and ``spans``,
    tables of devices ``devices``.
    """
    drawn: list[tuple[str, pd.DataFrame, Callable[[pd.DataFrame], Figure]]] = []
    if links:
        drawn += [
            ("rate", rate_frame(links), draw_rate),
            ("distribution", distribution_frame(links), draw_distribution),
        ]
    if files:
        drawn += [("day", day_frame(files), draw_day), ("spans", span_frame(files), draw_spans)]
    drawn.append(("devices", device_tables.frame(tables), device_tables.draw))
    rendered: dict[str, bytes] = {}
    for name, frame, draw in drawn:
        if frame.empty:  # devices that never change have no spans, others no numbers
            continue
        with style.context():
            figure = draw(frame)
            for suffix in style.FORMATS:
                rendered[f"{name}.{suffix}"] = style.render(figure, suffix)
        rendered[f"{name}.csv"] = frame.to_csv(index=False, lineterminator="\n").encode()
    return rendered


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


def draw_rate(frame: pd.DataFrame) -> Figure:
    """Return a panel for each link, on a scale of its own, with both directions in it."""
    names = list(dict.fromkeys(frame["link"]))
    figure = style.figure(style.IEEE.page_in, 0.45 + 0.9 * len(names))
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
        if unit != below:  # else the panel below says it
            axes.set_xlabel(f"Time ({unit.name})", labelpad=1)
        axes.grid(axis="y")
    shown = [one for one in DIRECTIONS if (frame["direction"] == one).any()]
    style.legend_above(figure, [_line(DIRECTIONS[one], f"{one}link") for one in shown])
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


def draw_distribution(frame: pd.DataFrame) -> Figure:
    """Return a panel for each direction; what lies left of its edge is time close to an outage."""
    shown = [one for one in DIRECTIONS if (frame["direction"] == one).any()]
    names = list(dict.fromkeys(frame["link"]))
    colors = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}
    width_in = style.IEEE.page_in if len(shown) > 1 else style.IEEE.column_in
    figure = style.figure(width_in, 1.95)
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for axes, direction in zip(panels, shown, strict=True):
        rows = frame[frame["direction"] == direction]
        high = rows["rate_mbps"].max()
        low = max(rows["rate_mbps"][rows["rate_mbps"] > 0].min(), high / 1e3)
        for name, own in rows.groupby("link", sort=False):
            rates = np.append(np.maximum(own["rate_mbps"], low / 10), 2 * high)
            share = np.append(own["share_of_time"], 1.0)
            axes.step(rates, 100 * share, where="post", color=colors[str(name)])
        axes.set(xscale="log", xlim=(low / 1.15, 1.15 * high), ylim=(0, 102))
        style.plain_log_axis(axes.xaxis)
        axes.set_xlabel(f"{direction.capitalize()}link rate (Mbit/s)")
        axes.grid()
    panels[0].set_ylabel("Share of time at or below (%)")
    style.legend_above(
        figure, [_line(color, escape.figure(name)) for name, color in colors.items()]
    )
    return figure


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


def draw_day(frame: pd.DataFrame) -> Figure:
    """Share of devices online in each hour of the day, one line a source."""
    figure = style.figure(style.IEEE.column_in, 1.9)
    axes = figure.subplots()
    handles = []
    for i, (name, rows) in enumerate(frame.groupby("source", sort=False)):
        color = PALETTE[i % len(PALETTE)]
        share = 100 * rows["share_online"].to_numpy()
        axes.stairs(share, np.arange(25), color=color, linewidth=1.2, baseline=None)
        number = int(rows["num_devices"].iloc[0])
        handles.append(
            _line(color, f"{escape.figure(str(name))} ({number:,} device{'s' * (number != 1)})")
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


def draw_spans(frame: pd.DataFrame) -> Figure:
    """Distribution of the lengths of spans; online drawn through, offline dashed."""
    sources = list(dict.fromkeys(frame["source"]))
    figure = style.figure(style.IEEE.column_in, 1.9)
    axes = figure.subplots()
    for i, name in enumerate(sources):
        for state, dashes in (("online", "-"), ("offline", (0, (4, 2)))):
            own = frame[(frame["source"] == name) & (frame["state"] == state)]
            color = PALETTE[i % len(PALETTE)]
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
    handles = [
        _line(PALETTE[i % len(PALETTE)], escape.figure(name)) for i, name in enumerate(sources)
    ]
    dashed = Line2D([], [], color=style.GREY, linestyle=(0, (4, 2)), label="offline")
    style.legend_above(figure, [*handles, _line(style.GREY, "online"), dashed])
    return figure


def _directions(links: Mapping[str, Recording]) -> list[tuple[str, str, BandwidthTrace]]:
    """(link, direction, trace) of every direction that was measured."""
    pairs = [
        (name, direction, trace)
        for name, link in links.items()
        for direction, trace in (("down", link.downlink), ("up", link.uplink))
    ]
    return [(name, direction, trace) for name, direction, trace in pairs if trace is not None]


def _steps(axes: Axes, rows: pd.DataFrame, unit_s: float, color: str) -> None:
    """The rate as the staircase it is."""
    edges = np.append(rows["time_s"], rows["end_s"].iloc[-1]) / unit_s
    axes.stairs(rows["rate_mbps"], edges, baseline=None, color=color, linewidth=0.8)


def _title(name: str, rows: pd.DataFrame) -> str:
    means = rows.groupby("direction")["mean_mbps"].first()
    words = [f"{means[one]:.3g} {one}" for one in DIRECTIONS if one in means]
    return f"{escape.figure(name)}: mean {', '.join(words)} (Mbit/s)"


def _line(color: str, label: str) -> Line2D:
    return Line2D([], [], color=color, label=label)
