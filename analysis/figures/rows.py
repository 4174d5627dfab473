"""Puts the rows of several runs into one frame, from which a figure is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from analysis.figures import colors
from analysis.runs.load import Run

SHADE = "shade"
"""The column that counts the labels of one strategy, by which figures tell them apart."""


def of_runs(runs: Sequence[Run], rows: Callable[[Run], pd.DataFrame]) -> pd.DataFrame:
    """Return the rows of every run, after columns for its label, strategy, shade and seed.

    Give all runs, for the shade to be alike in every figure.
    """
    numbers = colors.shades((run.label, run.strategy) for run in runs)
    parts = [
        rows(run).assign(
            label=run.label,
            strategy=run.strategy,
            shade=numbers[run.label],
            seed=run.manifest["seed"],
        )
        for run in runs
    ]
    # If no run has rows, the empty frames are joined, since they have the columns.
    filled = [part for part in parts if len(part)] or parts
    if not filled:
        return pd.DataFrame()
    frame = pd.concat(filled, ignore_index=True)
    first = ["label", "strategy", "shade", "seed"]
    return frame[first + [column for column in frame if column not in first]]


def of_first_seed(runs: Sequence[Run]) -> list[Run]:
    """Return the runs of the lowest seed: single devices are shown in one world only."""
    seed = min(run.manifest["seed"] for run in runs)
    return [run for run in runs if run.manifest["seed"] == seed]
