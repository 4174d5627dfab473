"""What a run is judged by. ``docs/metrics.md`` holds the formula of every number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import pandas as pd

from analysis.load import Run, RunError

STEPS_PER_UNIT = 20  # a default target is a multiple of 5 points
TOLERANCE = 1e-6  # an accuracy stored as float32 still reaches the target it equals


@dataclass(frozen=True)
class Target:
    """The accuracy that runs are timed to. None: no run offers one."""

    accuracy: float | None
    rule: str  # how it was chosen, for the reader of the table


class Reached(NamedTuple):
    """What it took to reach the target: sums over the rounds up to and with the one that did."""

    round: int
    at_s: float
    transfer_bytes: int
    energy_j: float


class SpeedUp(NamedTuple):
    """Time to target of the baseline over that of the run: exactly, or a bound on it."""

    ratio: float
    relation: Literal["=", ">", "<"]


def evaluations(run: Run) -> pd.DataFrame:
    """The rounds at which the model was evaluated, the initial model (round 0) included."""
    return run.rounds[run.rounds["accuracy"].notna()]


def best_accuracy(run: Run) -> float:
    """The highest evaluated accuracy; NaN where the model was never evaluated."""
    return float(evaluations(run)["accuracy"].max())


def final_accuracy(run: Run) -> float:
    """The last evaluated accuracy; NaN where the model was never evaluated."""
    accuracy = evaluations(run)["accuracy"]
    return float(accuracy.iloc[-1]) if len(accuracy) else math.nan


def reached(run: Run, target: float) -> Reached | None:
    """What the run took to its first evaluation at or above ``target``; None: not reached."""
    accuracy = evaluations(run)["accuracy"]
    hits = accuracy.index[accuracy >= target - TOLERANCE]
    if not len(hits):
        return None
    until = run.rounds.loc[: hits[0]]
    return Reached(
        round=int(until["round"].iloc[-1]),
        at_s=float(until["closed_s"].iloc[-1]),
        transfer_bytes=int(until["download_bytes"].sum() + until["upload_bytes"].sum()),
        energy_j=float(until["energy_j"].sum()),
    )


def speed_up(run: Run, baseline: Run, target: float) -> SpeedUp | None:
    """How many times sooner than the baseline the run reaches the target.

    Where one of the two never does, its last evaluation bounds the ratio from one side. None where
    neither does, or where the initial model is there already.
    """
    own, base = reached(run, target), reached(baseline, target)
    own_s, base_s = (
        hit.at_s if hit else _last_evaluated_s(one) for hit, one in ((own, run), (base, baseline))
    )
    if (own is None and base is None) or own_s == 0:
        return None
    relation: Literal["=", ">", "<"] = "=" if own and base else ">" if own else "<"
    return SpeedUp(base_s / own_s, relation)


def choose_target(runs: Sequence[Run], given: float | None = None) -> Target:
    """The given target, or the highest multiple of 5 points that every run reached by training.

    Where some run reached none, the highest that any run reached. Raises RunError if ``given`` is
    not an accuracy.
    """
    if given is not None:
        if not 0 < given <= 1:
            raise RunError(f"a target accuracy must be a share in (0, 1], got {given}")
        return Target(given, "as asked for")
    judged = [run for run in runs if len(evaluations(run))]
    if not judged:
        return Target(None, "no run evaluated its model")
    start = max(_steps(float(evaluations(run)["accuracy"].iloc[0])) for run in judged)
    reached_steps = [_steps(best_accuracy(run)) for run in judged]
    for steps, who in ((min(reached_steps), "every run"), (max(reached_steps), "any run")):
        if steps > start:
            return Target(
                steps / STEPS_PER_UNIT, f"the highest multiple of 5 points that {who} reached"
            )
    return Target(None, "no run rose by a multiple of 5 points above its initial model")


def choose_baseline(runs: Sequence[Run], label: str | None = None) -> Run:
    """The run of this label; without one, the first FedLoRA run, else the first of all."""
    if label is None:
        return next((run for run in runs if run.strategy == "fedlora"), runs[0])
    for run in runs:
        if run.label == label:
            return run
    labels = ", ".join(run.label for run in runs)
    raise RunError(f"the baseline must be one of the runs ({labels}), got {label!r}")


def waiting_s(run: Run) -> float:
    """Mean over the rounds with an aggregation of the mean wait of the aggregated devices."""
    return float(run.rounds.loc[run.rounds["num_aggregated"] > 0, "waiting_s"].mean())


def peak_memory_bytes(run: Run) -> float:
    """The largest peak of a plan that ran, that is, one that did not meet OOM."""
    return float(_ran(run)["peak_memory_bytes"].max())


def peak_memory_share(run: Run) -> float:
    """The largest peak over budget of a plan that ran."""
    ran = _ran(run)
    return float((ran["peak_memory_bytes"] / ran["memory_budget_bytes"]).max())


def planned_memory_bytes(run: Run) -> float:
    """Mean over every plan handed out of the peak it needs, whether it fitted or not."""
    return float(run.clients["peak_memory_bytes"].mean())


def lost_work_share(run: Run) -> float:
    """Share of the device-seconds spent on plans whose update was never aggregated."""
    busy_s = run.clients["finished_s"] - run.clients["started_s"]
    lost_s = busy_s[run.clients["outcome"] != "aggregated"].sum()
    return float(lost_s / busy_s.sum()) if busy_s.sum() > 0 else math.nan


def _ran(run: Run) -> pd.DataFrame:
    return run.clients[run.clients["outcome"] != "oom"]


def _last_evaluated_s(run: Run) -> float:
    closed_s = evaluations(run)["closed_s"]
    return float(closed_s.iloc[-1]) if len(closed_s) else 0.0


def _steps(accuracy: float) -> int:
    """The number of whole steps of 5 points in it."""
    return math.floor((accuracy + TOLERANCE) * STEPS_PER_UNIT)
