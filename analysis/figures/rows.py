"""What the figures' frames share: whose rows they are, and of which seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from analysis.load import Run


def of_runs(runs: Sequence[Run], rows: Callable[[Run], pd.DataFrame]) -> pd.DataFrame:
    """The rows of every run, with the label, strategy and seed of the run before them."""
    parts = [
        rows(run).assign(label=run.label, strategy=run.strategy, seed=run.manifest["seed"])
        for run in runs
    ]
    frame = pd.concat(parts, ignore_index=True)
    first = ["label", "strategy", "seed"]
    return frame[first + [column for column in frame if column not in first]]


def of_first_seed(runs: Sequence[Run]) -> list[Run]:
    """The runs of the lowest seed: what is shown device by device is shown of one world."""
    seed = min(run.manifest["seed"] for run in runs)
    return [run for run in runs if run.manifest["seed"] == seed]
