"""Waiting time per round: what the devices that finish early lose to the last one."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.comparison import Comparison
from analysis.figures import style
from analysis.metrics import waiting_s
from analysis.units import SECONDS, choose, significant


def frame(comparison: Comparison) -> pd.DataFrame:
    """One row a round with an aggregation; the run's mean beside it."""
    parts = [
        run.rounds.loc[run.rounds["num_aggregated"] > 0, ["round", "num_aggregated", "waiting_s"]]
        .assign(label=run.label, strategy=run.strategy, mean_waiting_s=waiting_s(run))
        .reset_index(drop=True)
        for run in comparison.runs
    ]
    return pd.concat(parts, ignore_index=True)


def draw(frame: pd.DataFrame) -> Figure:
    """One line a run over its rounds, and its mean as a thin line, with the number."""
    figure = style.figure(style.COLUMN_IN, 2.1 + 0.08 * frame["label"].nunique())
    axes = figure.subplots()
    unit = choose(SECONDS, frame["waiting_s"])
    for label, look in style.looks(frame).items():
        rows = frame[frame["label"] == label]
        if rows.empty:
            continue
        mean = rows["mean_waiting_s"].iloc[0] / unit.size
        axes.plot(
            rows["round"],
            rows["waiting_s"] / unit.size,
            color=look.color,
            marker=look.marker,
            markevery=style.mark_every(rows),
            markersize=2.2,
            linewidth=0.7,
            alpha=0.6,
            label=f"{label} (mean {significant(mean)} {unit.name})",
        )
        axes.axhline(mean, color=look.color, linewidth=1.2, linestyle=(0, (4, 2)))
    axes.set(xlabel="Round", ylabel=f"Mean waiting time ({unit.name})")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_ylim(bottom=0)
    axes.grid()
    style.legend_above(figure, axes.get_legend_handles_labels()[0])
    return figure
