"""Draws the simulated time to the target, or a lower bound where a run did not reach it."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.figures import bands, bars, style
from analysis.figures.rows import of_runs
from analysis.metrics.definitions import value_in_words
from analysis.metrics.run_metrics import evaluations
from analysis.metrics.study import Study
from analysis.units import SECONDS, significant
from devices.tasks.classification import ACCURACY
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
            [_row(study.run_row(run), target)] if len(evaluations(run)) else []
        ),
    )


def _row(numbers: pd.Series[Any], target: float) -> dict[str, object]:
    is_reached = bool(numbers["is_reached"])
    at_s = float(numbers["time_to_target_s" if is_reached else "spent_s"])
    return {"target": target, "is_reached": is_reached, "at_s": at_s}


def plot(
    frame: pd.DataFrame, axes: Axes, *, metric: Metric = ACCURACY, band: str = "range"
) -> None:
    """Draw a bar for each label; hatched and with ">" where a seed never reached the target.

    Such a seed counts with the time of its last evaluation, so the bar is a bound from below.
    """
    spread = bands.of_labels(frame, "at_s", band=band)
    unit = SECONDS.unit(frame["at_s"])
    looks, texts = style.looks(frame), []
    for row, (label, low) in enumerate(spread["middle"].items()):
        own = frame[frame["label"] == label]
        hits, num = int(own["is_reached"].sum()), len(own)
        color = looks[str(label)].color
        fill: dict[str, Any] = {"facecolor": color, "linewidth": 0}
        if hits < num:
            fill = {"facecolor": "white", "edgecolor": color, "hatch": "//////"}
        axes.barh(row, low / unit.size, bars.HEIGHT, **fill)
        number = significant(low / unit.size)
        texts.append(number if hits == num else f"> {number} ({hits} of {num})")
    bars.whiskers(axes, spread, unit)
    bars.write(axes, spread["high"] / unit.size, texts)
    bars.name_rows(axes, [str(label) for label in spread.index])
    target = value_in_words(metric, frame["target"].iloc[0])
    axes.set_xlabel(f"Simulated time to {target} ({unit.name})")


def draw(frame: pd.DataFrame, paper: style.Paper, *, metric: Metric = ACCURACY) -> Figure:
    """Return a narrow figure; a legend only where a target was missed."""
    figure, axes = bars.figure(frame, paper.column_in)
    plot(frame, axes, metric=metric, band=paper.band)
    handles: list[Artist] = []
    if not frame["is_reached"].all():
        bound = Patch(facecolor="white", edgecolor=style.GREY, hatch="//////")
        bound.set_label("at least: reached by so many runs alone")
        handles.append(bound)
    style.legend_above(figure, handles, bands.note(frame, paper.band))
    return figure
