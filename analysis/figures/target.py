"""Draws the simulated time to the target, or a lower bound where a run did not reach it."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.figures import bands, bars, colors, style
from analysis.figures.rows import of_runs
from analysis.metrics.definitions import value_in_words
from analysis.metrics.run_metrics import evaluated
from analysis.metrics.seeds import median
from analysis.metrics.study import Study
from analysis.units import SECONDS, significant
from devices.tasks.registry import UNNAMED_METRIC
from devices.tasks.task import Metric


def frame(study: Study) -> pd.DataFrame:
    """Return one row for each run: the target, whether it was reached, and at which instant.

    The instant is that of the last evaluation where the target was not reached. The frame is empty
    where there is no target.
    """
    target = study.target.value
    if target is None:
        return pd.DataFrame()
    return of_runs(
        study.runs,
        lambda run: pd.DataFrame(
            [_row(study.run_row(run), target)] if len(evaluated(run.rounds, run.metric)) else []
        ),
    )


def _row(numbers: pd.Series[Any], target: float) -> dict[str, object]:
    is_reached = bool(numbers["is_reached"])
    at_s = float(numbers["time_to_target_s" if is_reached else "spent_s"])
    return {"target": target, "is_reached": is_reached, "at_s": at_s}


WORDS = {
    "range": "Median and min–max",
    "ci95": "Median and 95 % confidence interval (bootstrap)",
    "quartiles": "Median and quartiles",
}
"""What bar and whisker stand for, by the name of the band: the median, as in every table."""


def medians(frame: pd.DataFrame, *, band: str, by: str = "label") -> pd.DataFrame:
    """Return a row for each label: its median time in [middle, upper], and its band [low, high].

    ``by`` names another column, for a row of each of its values. A run that did not reach the
    target took longer than until its last evaluation; an end that no run bounds is infinite.
    """
    rows = {}
    for label, own in frame.groupby(by, sort=False):
        lower = own["at_s"].to_numpy(float)
        upper = np.where(own["is_reached"], lower, math.inf)
        found = median(lower.tolist(), upper.tolist())
        # There is no value between a number and infinity to interpolate, so the higher one counts.
        rule: Literal["linear", "higher"] = "linear" if np.isfinite(upper).all() else "higher"
        low, high = {
            "range": (lower.min(), upper.max()),
            "ci95": (found.low, found.high),
            "quartiles": (np.quantile(lower, 0.25), np.quantile(upper, 0.75, method=rule)),
        }[band]
        rows[label] = [float(low), found.value, found.upper, float(high)]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["low", "middle", "upper", "high"])


def plot(
    frame: pd.DataFrame, axes: Axes, *, metric: Metric = UNNAMED_METRIC, band: str = "range"
) -> None:
    """Draw a bar for each label: the median of its seeds, as the table of a study has it.

    A bar is hatched where seeds that never reached the target leave a bound alone of the median.
    """
    spread = medians(frame, band=band)
    unit = SECONDS.unit(frame["at_s"])
    hits = frame.groupby("label", sort=False)["is_reached"].agg(["sum", "size"])
    looks, texts = colors.looks(frame), []
    for row, label in enumerate(map(str, spread.index)):
        middle, upper = spread[["middle", "upper"]].iloc[row] / unit.size
        fill: dict[str, Any] = {"facecolor": looks[label].color, "linewidth": 0}
        if upper > middle:
            fill = {"facecolor": "white", "edgecolor": looks[label].color, "hatch": "//////"}
        axes.barh(row, middle, bars.HEIGHT, **fill)
        number = significant(middle)
        if upper > middle:
            number = f"> {number}" if math.isinf(upper) else f"{number} to {significant(upper)}"
        reached, num = hits.iloc[row]
        texts.append(number if reached == num else f"{number} ({reached} of {num})")
    bars.whiskers(axes, spread, unit)
    ends = spread[["middle", "high"]].max(axis=1).clip(upper=bars.finite_end(spread))
    bars.write(axes, ends / unit.size, texts)
    bars.name_rows(axes, [str(label) for label in spread.index])
    target = value_in_words(metric, frame["target"].iloc[0])
    axes.set_xlabel(f"Simulated time to {target} ({unit.name})")


def draw(frame: pd.DataFrame, paper: style.Paper, *, metric: Metric) -> Figure:
    """Return a narrow figure; a legend only where a bar is a bound."""
    figure, axes = bars.figure(frame, paper.column_in)
    plot(frame, axes, metric=metric, band=paper.band)
    spread = medians(frame, band=paper.band)
    handles: list[Artist] = []
    if (spread["upper"] > spread["middle"]).any():
        bound = Patch(facecolor="white", edgecolor=colors.GREY, hatch="//////")
        bound.set_label("at least: reached by so many runs alone")
        handles.append(bound)
    style.legend_above(figure, handles, bands.of_seeds(frame, WORDS[paper.band]))
    return figure
