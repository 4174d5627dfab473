"""Variants side by side over seeds: one row a run, and what the seeds together say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.metrics import run_metrics as metrics
from analysis.metrics.run_metrics import Target
from analysis.metrics.seeds import over_seeds
from analysis.runs.differences import settings_that_differ
from analysis.runs.files import RunError, read_config, read_table
from analysis.runs.frames import RunSet

ROUND_COLUMNS = (
    "round", "closed_s", "accuracy", "download_bytes", "upload_bytes", "energy_j", "waiting_s",
    "num_aggregated", "num_sat_out", "num_oom", "num_late", "num_offline", "num_crashed",
    "num_lost", "num_rejected",
)  # fmt: skip
CLIENT_COLUMNS = (
    "round", "device_id", "outcome", "started_s", "download_s", "train_s", "upload_s",
    "finished_s", "waiting_s", "staleness", "download_bytes", "upload_bytes", "energy_compute_j",
    "energy_radio_j", "memory_budget_bytes", "peak_memory_bytes",
)  # fmt: skip
DEVICE_COLUMNS = ("device_id", "expected_accuracy")
SAME_TASK = ("model", "model_sha256", "data", "data_sha256", "training")


@dataclass(frozen=True, eq=False)
class Study:
    """Variants under the same conditions for each seed."""

    runs: RunSet  # without the runs whose tables turned out damaged: these are in left_out
    target: Target
    baseline: str  # a variant
    per_run: pd.DataFrame  # one row a run: variant, strategy, seed and every metric in SI units
    summary: pd.DataFrame  # as ``over_seeds`` gives it


def study(
    runs: RunSet,
    *,
    target: float | None = None,
    baseline: str | None = None,
    smoothing: int = 1,
) -> Study:
    """Every metric of these runs, and over seeds. One run's plans are in memory at a time.

    Raises RunError where the runs met unlike conditions, none can be read, or on a target,
    baseline or smoothing that cannot be.
    """
    if smoothing < 1:
        raise RunError(f"the smoothing must be over at least 1 evaluation, got {smoothing}")
    if runs.runs.empty:
        raise RunError("at least one run must be left to compare; none is as asked for")
    require_comparable(runs)
    rounds, work, damaged = _read(runs)
    if not rounds:
        raise RunError("at least one run must be readable; " + "; ".join(damaged))
    kept = RunSet(runs.runs.loc[list(rounds)], (*runs.left_out, *damaged))
    judged = {name: metrics.smoothed(one, smoothing) for name, one in rounds.items()}
    chosen = metrics.choose_target(list(judged.values()), target)
    horizon_s = _horizon_s(rounds)
    rows = {
        name: {
            **metrics.to_target(judged[name], chosen.accuracy),
            **metrics.of_rounds(rounds[name]),
            "accuracy_area": metrics.accuracy_area(rounds[name], horizon_s),
            **work[name],
        }
        for name in rounds
    }
    numbers = pd.DataFrame.from_dict(rows, orient="index")
    per_run = kept.runs[["variant", "strategy", "seed"]].join(numbers)
    base = choose_baseline(kept, baseline)
    return Study(kept, chosen, base, per_run, over_seeds(per_run, base))


def choose_baseline(runs: RunSet, given: str | None = None) -> str:
    """The variant of this name; without one, the first of FedLoRA, else the first of all."""
    if given is None:
        plain = runs.runs.loc[runs.runs["strategy"] == "fedlora", "variant"]
        return str(plain.iloc[0]) if len(plain) else runs.variants[0]
    if given not in runs.variants:
        names = ", ".join(runs.variants)
        raise RunError(f"the baseline must be one of the variants ({names}), got {given!r}")
    return given


def require_comparable(runs: RunSet) -> None:
    """Raise RunError unless all runs share model, data and training or none, and those of a seed
    their conditions.
    """
    for column, rows in [
        *((name, runs.runs) for name in SAME_TASK),
        *(("conditions_hash", same) for _, same in runs.runs.groupby("seed", sort=False)),
    ]:
        different = rows.drop_duplicates(column)
        if len(different) > 1:
            one, other = different.iloc[0], different.iloc[1]
            raise RunError(
                "variants that are compared must share model, data and training, and for each seed"
                f" the fleet, its traces and shards; {one['path']} and {other['path']} differ in "
                + _difference(column, one, other)
            )


def _difference(column: str, one: pd.Series[Any], other: pd.Series[Any]) -> str:
    if column != "conditions_hash":
        return f"{column.replace('_', ' ')} ({one[column]} / {other[column]})"
    configs = (read_config(Path(str(row["path"]))) for row in (one, other))
    return f"the conditions of seed {one['seed']}" + settings_that_differ(*configs)


def _read(
    runs: RunSet,
) -> tuple[dict[str, pd.DataFrame], dict[str, dict[str, float]], list[str]]:
    """The rounds of every run, what its plans and devices came to, and what is damaged."""
    rounds: dict[str, pd.DataFrame] = {}
    work: dict[str, dict[str, float]] = {}
    damaged: list[str] = []
    for name, path in zip(runs.runs.index, map(Path, runs.runs["path"]), strict=True):
        try:
            played = read_table(path, "rounds", ROUND_COLUMNS)
            clients = read_table(path, "clients", CLIENT_COLUMNS)
            devices = read_table(path, "devices", DEVICE_COLUMNS)
        except RunError as error:
            damaged.append(str(error))
            continue
        rounds[str(name)] = played
        work[str(name)] = {
            **metrics.of_clients(clients),
            **metrics.of_devices(devices, clients),
        }
    return rounds, work, damaged


def _horizon_s(rounds: Mapping[str, pd.DataFrame]) -> float:
    """The earliest of the last evaluations: up to there every run that learns is known."""
    ends = [metrics.evaluated(one)["closed_s"].max() for one in rounds.values()]
    return float(min((end for end in ends if end > 0), default=math.nan))
