"""Keeps the lines of a panel readable: apart from each other, and from the words beside them."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.figures.colors import DARK_GREY, GREY, Look

MAX_MARKS = 12
NUM_SAMPLES = 200  # places at which lines are compared with each other and with words
COVERED_SHARE = 0.004  # two lines look like one within this share of the height of their axes


def mark_every(num_points: int) -> int:
    """Return how many points lie from mark to mark: a short line has all of them marked."""
    return max(1, -(-num_points // MAX_MARKS))


def staircase(
    axes: Axes, at: npt.ArrayLike, heights: npt.ArrayLike, look: Look, *, label: str
) -> None:
    """Draw a line that keeps each height until the next place."""
    axes.step(at, heights, where="post", color=look.color, linestyle=look.dash, label=label)


def tell_apart(axes: Axes) -> None:
    """Widen each line that a later one covers, so that it shows on both sides of that one."""
    lines = axes.get_lines()
    curves = [_sampled(axes, line) for line in lines]
    (bottom, top), width = axes.get_ylim(), mpl.rcParams["lines.linewidth"]
    for place, (line, curve) in enumerate(zip(lines, curves, strict=True)):
        covers = [
            np.mean(np.abs(curve - other) < COVERED_SHARE * abs(top - bottom))
            for other in curves[place + 1 :]
        ]
        num_covers = sum(share > 0.25 for share in covers)
        line.set_linewidth(width + 0.9 * min(num_covers, 3))


def _sampled(axes: Axes, line: Line2D) -> npt.NDArray[np.float64]:
    """Return (NUM_SAMPLES,): a line's heights at places along its axes, NaN outside the line."""
    x, y = (np.asarray(part, dtype=float) for part in line.get_data(orig=False))
    if len(x) == 0:
        return np.full(NUM_SAMPLES, math.nan)
    spaced = np.geomspace if axes.get_xscale() == "log" else np.linspace
    at = spaced(*axes.get_xlim(), num=NUM_SAMPLES)
    if line.get_drawstyle() == "steps-post":
        heights = y[np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(y) - 1)]
    else:
        heights = np.interp(at, x, y)
    return np.where((at >= x.min()) & (at <= x.max()), heights, math.nan)


def name_level(axes: Axes, level: float, words: str) -> None:
    """Draw a thin level line, and its name where the fewest lines of the axes pass."""
    named = axes.get_legend_handles_labels()[1]
    axes.axhline(level, color=GREY, linewidth=0.7, linestyle=(0, (4, 2)), zorder=1)
    width_in = axes.get_position().width * float(axes.figure.bbox.width) / axes.figure.dpi
    span = 0.047 * len(words) / width_in  # share of the axes' width, in letters of 7 pt
    bottom, top = axes.get_ylim()
    if level > top:  # a target far above all curves: its name would lie outside the panel
        top = bottom + 1.15 * (level - bottom)
        axes.set_ylim(bottom, top)
    high = 0.13 / 1.5 * (top - bottom)  # the height of a line of text, in units of the axis
    curves = [_sampled(axes, line) for line in axes.get_lines() if line.get_label() in named]
    at = np.linspace(0.0, 1.0, NUM_SAMPLES)

    def hits(side: str, sign: int) -> float:
        is_there = at <= span if side == "left" else at >= 1 - span
        low, up = sorted((level, level + sign * high))
        if low < bottom or up > top:
            return math.inf
        return float(sum(np.sum((c[is_there] >= low) & (c[is_there] <= up)) for c in curves))

    places = [("left", 1), ("right", 1), ("right", -1), ("left", -1)]
    side, sign = min(places, key=lambda place: hits(*place))
    axes.annotate(
        words,
        (0.0 if side == "left" else 1.0, level),
        xycoords=axes.get_yaxis_transform(),
        xytext=(2 if side == "left" else -2, 2.5 * sign),
        textcoords="offset points",
        ha="left" if side == "left" else "right",
        va="bottom" if sign > 0 else "top",
        fontsize=7,
        color=DARK_GREY,
    )
