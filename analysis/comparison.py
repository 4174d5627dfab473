"""Runs side by side: what they are timed to, what they are measured against, and the numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis import metrics
from analysis.load import Run, RunError
from analysis.metrics import Target


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
    chosen = metrics.choose_target(runs, target)
    base = metrics.choose_baseline(runs, baseline)
    rows = [
        {
            "label": run.label,
            "strategy": run.strategy,
            **_to_target(run, base, chosen.accuracy),
            **_totals(run),
        }
        for run in runs
    ]
    return Comparison(tuple(runs), base, chosen, pd.DataFrame(rows).set_index("label"))


def _to_target(run: Run, baseline: Run, target: float | None) -> dict[str, object]:
    """What the run took to the target, and its speed-up over the baseline."""
    hit = metrics.reached(run, target) if target is not None else None
    gain = metrics.speed_up(run, baseline, target) if target is not None else None
    return {
        "target_accuracy": math.nan if target is None else target,
        "is_reached": hit is not None,
        "time_to_target_s": hit.at_s if hit else math.nan,
        "speed_up": gain.ratio if gain else math.nan,
        "speed_up_relation": gain.relation if gain else "",
        "rounds_to_target": hit.round if hit else math.nan,
        "bytes_to_target": hit.transfer_bytes if hit else math.nan,
        "energy_to_target_j": hit.energy_j if hit else math.nan,
    }


def _totals(run: Run) -> dict[str, object]:
    """What the whole run came to."""
    rounds = run.rounds
    return {
        "final_accuracy": metrics.final_accuracy(run),
        "best_accuracy": metrics.best_accuracy(run),
        "num_rounds": int(rounds["round"].max()),
        "simulated_s": float(rounds["closed_s"].max()),
        "waiting_s": metrics.waiting_s(run),
        "planned_memory_bytes": metrics.planned_memory_bytes(run),
        "peak_memory_bytes": metrics.peak_memory_bytes(run),
        "peak_memory_share": metrics.peak_memory_share(run),
        "num_oom": int(rounds["num_oom"].sum()),
        "num_late": int(rounds["num_late"].sum()),
        "num_sat_out": int(rounds["num_sat_out"].sum()),
        "download_bytes": int(rounds["download_bytes"].sum()),
        "upload_bytes": int(rounds["upload_bytes"].sum()),
        "energy_j": float(rounds["energy_j"].sum()),
        "lost_work_share": metrics.lost_work_share(run),
    }
