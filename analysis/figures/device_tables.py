"""Draws how the devices of tables differ: distributions of speed, memory and rates."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from analysis import escape
from analysis.figures import colors, lines, style
from traces.importers.result import DeviceTable

PANELS = {
    "speed": ("Compute speed (multiple)", 1.0),
    "inference_s_per_sample": ("Inference (ms per sample)", 1e-3),
    "memory_bytes": ("Memory (GB)", 1e9),
    "downlink_mbps": ("Downlink rate (Mbit/s)", 1.0),
}
"""The title of each column's axis, and its unit."""


def frame(tables: Mapping[str, DeviceTable]) -> pd.DataFrame:
    """Return one row for each value that occurs.

    Columns are table, num_devices, column, value (in the panel's unit) and share of the devices at
    or below it.
    """
    parts = [pd.DataFrame(columns=["table", "num_devices", "column", "value", "share_of_devices"])]
    for name, table in tables.items():
        for column, (_, unit) in PANELS.items():
            if column not in table.columns:
                continue
            at = table.columns.index(column)
            known = pd.to_numeric(pd.Series([row[at] for row in table.rows]), errors="coerce")
            values, counts = np.unique(known[known > 0] / unit, return_counts=True)
            if len(values) == 0:
                continue
            part = {"table": name, "num_devices": counts.sum(), "column": column, "value": values}
            share = np.cumsum(counts) / counts.sum()
            parts.append(pd.DataFrame({**part, "share_of_devices": share}))
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def draw(rows: pd.DataFrame, paper: style.Paper = style.IEEE) -> Figure:
    """Draw a panel for each column that some table has, with a line for each table."""
    shown = [column for column in PANELS if (rows["column"] == column).any()]
    color_of = colors.palette(rows["table"])
    width_in = paper.page_in if len(shown) > 1 else paper.column_in
    figure = style.figure(width_in, 2.2 + 0.06 * len(color_of))
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for axes, column in zip(panels, shown, strict=True):
        here = rows[rows["column"] == column]
        low, high = here["value"].min() / 1.3, here["value"].max() * 1.3
        for name, own in here.groupby("table", sort=False):
            values = np.concatenate([[low], own["value"], [high]])
            shares = np.concatenate([[0.0], own["share_of_devices"], [1.0]])
            axes.step(values, 100 * shares, where="post", color=color_of[str(name)])
        axes.set(xscale="log", xlim=(low, high), ylim=(0, 102), xlabel=PANELS[column][0])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        # A range of less than a decade may have no major tick, so minor ones are labelled too.
        axes.xaxis.set_minor_formatter(
            FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
            if high / low < 100
            else FuncFormatter(lambda *_: "")
        )
        axes.grid()
        lines.tell_apart(axes)
    panels[0].set_ylabel("Devices at or below (%)")
    counts = rows.groupby("table", sort=False)["num_devices"].max().to_dict()
    labels = {
        name: f"{escape.figure(name)} ({counts[name]:,} device{'s' * (counts[name] != 1)})"
        for name in color_of
    }
    handles = [style.legend_line(color, labels[name]) for name, color in color_of.items()]
    style.legend_above(figure, handles)
    return figure
