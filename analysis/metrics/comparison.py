"""Runs side by side: what they are timed to, what they are measured against, and the numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.metrics import run_metrics as metrics
from analysis.metrics.run_metrics import Target
from analysis.runs.files import RunError
from analysis.runs.load import Run


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs under one set of conditions."""

    runs: tuple[Run, ...]
    baseline: Run
    target: Target
    table: pd.DataFrame  # one row a run, indexed by label; SI units, NaN where there is no number


def compare(
    runs: Sequence[Run], *, target: float | None = None, baseline: str | None = None
) -> Comparison:
    """The comparison of these runs. Raises RunError on a target or baseline that cannot be."""
    if not runs:
        raise RunError("a comparison needs at least one finished run, got none")
    chosen = metrics.choose_target([run.rounds for run in runs], target)
    base = choose_baseline(runs, baseline)
    of_base = metrics.to_target(base.rounds, chosen.accuracy)
    rows = []
    for run in runs:
        own = metrics.to_target(run.rounds, chosen.accuracy)
        gain = metrics.speed_up(own, of_base)
        rows.append(
            {
                "label": run.label,
                "strategy": run.strategy,
                **own,
                "speed_up": gain.ratio if gain else math.nan,
                "speed_up_relation": gain.relation if gain else "",
                **metrics.of_rounds(run.rounds),
                **metrics.of_clients(run.clients),
            }
        )
    return Comparison(tuple(runs), base, chosen, pd.DataFrame(rows).set_index("label"))


def choose_baseline(runs: Sequence[Run], label: str | None = None) -> Run:
    """The run of this label; without one, the first FedLoRA run, else the first of all."""
    if label is None:
        return next((run for run in runs if run.strategy == "fedlora"), runs[0])
    for run in runs:
        if run.label == label:
            return run
    labels = ", ".join(run.label for run in runs)
    raise RunError(f"the baseline must be one of the runs ({labels}), got {label!r}")
