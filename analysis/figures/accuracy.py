"""Accuracy of the global model against simulated time."""

from __future__ import annotations

from typing import Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.comparison import Comparison
from analysis.figures import style
from analysis.metrics import evaluations
from analysis.units import SECONDS, choose


def frame(comparison: Comparison) -> pd.DataFrame:
    """One row an evaluation: when its round closed, and the accuracy; the target beside it."""
    parts = [
        evaluations(run)[["round", "closed_s", "accuracy", "loss"]].assign(
            label=run.label,
            strategy=run.strategy,
            target=comparison.target.accuracy,
            majority_share=run.manifest["data"].get("majority_share"),
        )
        for run in comparison.runs
    ]
    return pd.concat(parts, ignore_index=True)


def draw(frame: pd.DataFrame) -> Figure:
    """One line a run, marks at evaluations; the target and the majority class as thin lines."""
    figure = style.figure(style.COLUMN_IN, 2.5)
    axes = figure.subplots()
    unit = choose(SECONDS, frame["closed_s"])
    for label, look in style.looks(frame).items():
        rows = frame[frame["label"] == label]
        axes.plot(
            rows["closed_s"] / unit.size,
            100 * rows["accuracy"],
            color=look.color,
            marker=look.marker,
            markevery=style.mark_every(rows),
            label=label,
        )
    # Curves rise from the lower left, so each word stands where they are not.
    _level(axes, frame["target"], "target", "left")
    _level(axes, frame["majority_share"], "majority class", "right")
    axes.set(xlabel=f"Simulated time ({unit.name})", ylabel="Test accuracy (%)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid()
    style.legend_above(figure, axes.get_legend_handles_labels()[0])
    return figure


def _level(
    axes: Axes, column: pd.Series[float], words: str, side: Literal["left", "right"]
) -> None:
    """A thin named line at the accuracy in ``column``, if there is one."""
    level = 100 * pd.to_numeric(column).max()
    if pd.isna(level):
        return
    axes.axhline(level, color=style.GREY, linewidth=0.7, linestyle=(0, (4, 2)), zorder=1)
    axes.annotate(
        f"{words} {level:.3g} %",
        (0.0 if side == "left" else 1.0, level),
        xycoords=axes.get_yaxis_transform(),
        xytext=(2 if side == "left" else -2, 1.5),
        textcoords="offset points",
        ha=side,
        fontsize=6.5,
        color="#555555",
    )
