"""Summarizes several seeds as a middle and a band around it, and draws both."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy.special import stdtrit

from analysis import escape
from analysis.figures import colors, lines
from analysis.metrics.paired import CONFIDENCE
from traces.arrays import FloatArray

AT_LEAST_NOTHING = (0.0, math.inf)
"""The range of seconds, bytes, joules and counts."""


class Band(NamedTuple):
    """A band summarizes (seeds, points) as low, middle and high (points,); ``words`` name it."""

    words: str
    summary: Callable[[FloatArray], tuple[FloatArray, FloatArray, FloatArray]]


class Curve(NamedTuple):
    """A curve is the line of one label with its band; all four arrays are (points,)."""

    x: FloatArray
    low: FloatArray
    middle: FloatArray
    high: FloatArray


def _range(values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    return values.min(axis=0), values.mean(axis=0), values.max(axis=0)


def _ci95(values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    num = len(values)
    middle = values.mean(axis=0)
    if num == 1:
        return middle, middle, middle
    quantile = float(stdtrit(num - 1, (1 + CONFIDENCE) / 2))
    half = quantile * values.std(axis=0, ddof=1) / np.sqrt(num)
    return middle - half, middle, middle + half


def _quartiles(values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    low, middle, high = np.percentile(values, (25, 50, 75), axis=0)
    return low, middle, high


BANDS = {
    "range": Band("Mean and min–max", _range),
    "ci95": Band("Mean and 95 % confidence interval (t)", _ci95),
    "quartiles": Band("Median and quartiles", _quartiles),
}


def note(frame: pd.DataFrame, band: str) -> str:
    """Return what lines, bars and bands stand for, for the legend; empty for a single seed."""
    return of_seeds(frame, BANDS[band].words)


def of_seeds(frame: pd.DataFrame, words: str) -> str:
    """Return the words with the number of seeds that they are of; empty for a single seed."""
    seeds = frame.groupby("label")["seed"].nunique()
    few, most = int(seeds.min()), int(seeds.max())
    number = str(most) if few == most else f"{few} to {most}"
    return f"{words} of {number} seeds" if most > 1 else ""


def summary(values: FloatArray, band: str, possible: tuple[float, float]) -> list[FloatArray]:
    """Return low, middle and high (points,) of (seeds, points), cut at what is ``possible``.

    A confidence interval is cut as tables cut it: it holds the true mean as often as the whole one.
    """
    low, middle, high = BANDS[band].summary(values)
    least, most = possible
    return [np.maximum(low, np.minimum(least, middle)), middle, np.minimum(high, most)]


def curve(
    rows: pd.DataFrame,
    *,
    x: str,
    y: str,
    band: str,
    possible: tuple[float, float] = AT_LEAST_NOTHING,
) -> Curve:
    """Return one label's curve over its seeds, at every x that any of them has.

    A seed is interpolated between its own points. The curve starts where the last seed starts and
    ends where the last ends: a seed that has ended keeps its last value, so that the middle does
    not jump with the seeds that are left.
    """
    seeds = [own[own[y].notna()].sort_values(x) for _, own in rows.groupby("seed")]
    curves = [(own[x].to_numpy(float), own[y].to_numpy(float)) for own in seeds if len(own)]
    if not curves:
        return Curve(*(np.empty(0) for _ in range(4)))
    start = max(at[0] for at, _ in curves)
    points = np.unique(np.concatenate([at for at, _ in curves]))
    points = points[points >= start]
    values = np.stack([np.interp(points, at, values) for at, values in curves])
    return Curve(points, *summary(values, band, possible))


def plot(
    axes: Axes, curve: Curve, look: colors.Look, *, label: str, size: tuple[float, float]
) -> None:
    """Draw the curve and its band; ``size`` is of the units of x and y."""
    x, (low, middle, high) = curve.x / size[0], (part / size[1] for part in curve[1:])
    axes.plot(
        x,
        middle,
        color=look.color,
        marker=look.marker,
        linestyle=look.dash,
        markevery=lines.mark_every(len(x)),
        label=escape.figure(label),
    )
    if (high > low).any():
        axes.fill_between(x, low, high, color=look.color, alpha=0.16, linewidth=0)


def of_labels(
    frame: pd.DataFrame,
    column: str,
    *,
    band: str,
    possible: tuple[float, float] = AT_LEAST_NOTHING,
) -> pd.DataFrame:
    """Return one row for each label: low, middle and high of a column with one value a seed."""
    rows = {
        label: [
            float(part[0]) for part in summary(own[column].to_numpy(float)[:, None], band, possible)
        ]
        for label, own in frame.groupby("label", sort=False)
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["low", "middle", "high"])
