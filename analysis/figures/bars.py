"""Draws horizontal bars, one for each label: stacked parts, and the spread over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis import escape
from analysis.figures import bands, colors, style
from analysis.units import Scale, Unit, significant

ROW_IN = 0.21
HEIGHT = 0.68

Parts = Mapping[str, tuple[str, str]]
"""The columns that a stacked bar adds up, each with its name in the legend and its colour."""


def figure(frame: pd.DataFrame, width_in: float) -> tuple[Figure, Axes]:
    """Return a figure as high as its bars need."""
    drawn = style.figure(width_in, 0.42 + ROW_IN * frame["label"].nunique())
    return drawn, drawn.subplots()


def stack(
    frame: pd.DataFrame,
    axes: Axes,
    parts: Parts,
    *,
    scale: Scale,
    band: str,
) -> Unit:
    """Draw stacked bars of the columns in ``parts``, and return the unit that they are in.

    A part is the mean over seeds, so that parts add up; the whisker is the band of their sum, and
    the number that of its middle.
    """
    total = frame.assign(total=frame[list(parts)].sum(axis=1))
    spread = bands.of_labels(total, "total", band=band)
    means = frame.groupby("label", sort=False)[list(parts)].mean()
    unit = scale.unit(spread["high"])
    floor = pd.Series(0.0, index=means.index)
    for column, (_, color) in parts.items():
        axes.barh(
            range(len(means)),
            means[column] / unit.size,
            HEIGHT,
            left=floor / unit.size,
            color=color,
            linewidth=0,
        )
        floor = floor + means[column]
    whiskers(axes, spread, unit)
    ends = spread["high"].where(spread["high"] > floor, floor)
    write(axes, ends / unit.size, [significant(v / unit.size) for v in spread["middle"]])
    name_rows(axes, list(means.index))
    return unit


def plain(axes: Axes, spread: pd.DataFrame, colors: Sequence[str], unit: Unit) -> None:
    """Draw a bar for each label, as long as its middle, with whisker, number and name."""
    axes.barh(range(len(spread)), spread["middle"] / unit.size, HEIGHT, color=colors, linewidth=0)
    whiskers(axes, spread, unit)
    ends = spread[["middle", "high"]].max(axis=1) / unit.size
    write(axes, ends, [significant(value / unit.size) for value in spread["middle"]])
    name_rows(axes, [str(label) for label in spread.index])


def whiskers(axes: Axes, spread: pd.DataFrame, unit: Unit) -> None:
    """Draw a line from low to high at every bar whose seeds differ.

    One that nothing bounds from above ends in an arrow, at the largest number of the frame.
    """
    look: dict[str, Any] = {"color": colors.BLACK, "linewidth": 0.9, "markersize": 4.5}
    ends = spread[["low", "high"]].to_numpy(float) / unit.size
    reach = finite_end(spread) / unit.size
    for row, (low, high) in enumerate(ends):
        if high > low:
            end = min(high, reach)
            # A white line lies below the black one, so that it can be seen on a black bar too.
            axes.plot([low, end], [row, row], color="white", linewidth=2.2)
            axes.plot([low, end], [row, row], "-", **look)
            axes.plot([low], [row], "|", **look)
            axes.plot([end], [row], "|" if end == high else ">", **look)


def finite_end(spread: pd.DataFrame) -> float:
    """Return the largest finite number of a frame."""
    numbers = spread.to_numpy(float)
    return float(numbers[np.isfinite(numbers)].max(initial=0.0))


def write(axes: Axes, ends: pd.Series[float], texts: list[str]) -> None:
    """Draw a text right of the end of each bar, and make the axis long enough to hold it."""
    for row, (end, text) in enumerate(zip(ends, texts, strict=True)):
        axes.annotate(text, (end, row), (4, 0), textcoords="offset points", va="center", fontsize=7)
    longest = max(len(text) for text in texts)
    width_pt = 72 * float(axes.figure.bbox.width) / axes.figure.dpi * 0.7
    room = min(0.5, (3.6 * longest + 5) / width_pt)
    axes.set_xlim(0, float(ends.max()) / (1 - room) or 1.0)


def name_rows(axes: Axes, labels: list[str]) -> None:
    """Draw the labels at their bars, the first at the top."""
    axes.set_yticks(range(len(labels)), [escape.figure(label) for label in labels])
    axes.set_ylim(len(labels) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def stacked_figure(
    frame: pd.DataFrame, paper: style.Paper, plot: Callable[..., None], parts: Parts
) -> Figure:
    """Return a narrow figure that ``plot`` fills; parts that are 0 in every run are not named."""
    drawn, axes = figure(frame, paper.column_in)
    plot(frame, axes, band=paper.band)
    named = dict(part for column, part in parts.items() if frame[column].any())
    handles = [Patch(color=color, linewidth=0, label=name) for name, color in named.items()]
    style.legend_above(drawn, handles, bands.note(frame, paper.band))
    return drawn
