"""What a run is judged by. ``docs/metrics.md`` holds the formula of every number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.metrics.definitions import OF_OTHER_TASKS, SMOOTHING
from analysis.runs.files import RunError
from analysis.runs.load import Run

STEPS_PER_UNIT = 20  # a default target is a multiple of 5 points
STRAGGLER_FACTOR = 1.5  # of the median time of a round's plans
QUANTILES = {"min": 0.0, "q10": 0.1, "q25": 0.25, "median": 0.5, "max": 1.0}  # over devices
TOLERANCE = 1e-6  # an accuracy stored as float32 still reaches the target it equals

LOSSES = (
    "num_sat_out", "num_oom", "num_late", "num_offline", "num_crashed", "num_lost", "num_rejected"
)  # fmt: skip
"""Of a round: the turns of devices that ended without a merged update."""

TO_TARGET = {
    "spent_rounds": "rounds_to_target",
    "spent_s": "time_to_target_s",
    "spent_bytes": "bytes_to_target",
    "spent_energy_j": "energy_to_target_j",
}
"""What was spent by the last evaluation, and the same to the target."""
SPENT = ("round", "closed_s", "download_bytes", "upload_bytes", "energy_j")


@dataclass(frozen=True)
class Target:
    """The accuracy that runs are timed to. None: no run offers one."""

    accuracy: float | None
    rule: str  # how it was chosen, for the reader of the table


class Spent(NamedTuple):
    """What a run took up to and with one of its rounds."""

    round: int
    at_s: float
    transfer_bytes: int
    energy_j: float


def evaluations(run: Run) -> pd.DataFrame:
    """The rounds at which the model was evaluated, the initial model (round 0) included."""
    return evaluated(run.rounds)


def waiting_s(run: Run) -> float:
    """Mean over the rounds with an aggregation of the mean wait of the aggregated devices."""
    return mean_waiting_s(run.rounds)


def evaluated(rounds: pd.DataFrame) -> pd.DataFrame:
    """The rounds of one run at which the model was evaluated."""
    return rounds[rounds["accuracy"].notna()]


def smoothed(rounds: pd.DataFrame, evaluations: int = SMOOTHING) -> pd.DataFrame:
    """Return the rounds of one run, accuracy replaced by the mean of the last few evaluations.

    It is not a number before there are so many.
    """
    if evaluations == 1:
        return rounds
    means = evaluated(rounds)["accuracy"].rolling(evaluations).mean()
    return rounds.assign(accuracy=means)


def spent(rounds: pd.DataFrame, row: int) -> Spent:
    """What one run took up to and with the round at this place."""
    upto = {name: rounds[name].to_numpy()[: row + 1] for name in SPENT}
    return Spent(
        round=int(upto["round"][-1]),
        at_s=float(upto["closed_s"][-1]),
        transfer_bytes=int(upto["download_bytes"].sum() + upto["upload_bytes"].sum()),
        energy_j=float(upto["energy_j"].sum()),
    )


def reached(rounds: pd.DataFrame, target: float) -> Spent | None:
    """Return what one run took to its first accuracy at or above ``target``; None: not reached.

    ``rounds`` are smoothed, wherever a crossing is reported.
    """
    hits = np.flatnonzero(rounds["accuracy"].to_numpy() >= target - TOLERANCE)
    return spent(rounds, int(hits[0])) if len(hits) else None


def sustained(rounds: pd.DataFrame, target: float) -> Spent | None:
    """Return what one run took until its accuracy stayed at or above ``target`` to the end.

    None where its last accuracy lies below.
    """
    accuracy = rounds["accuracy"].to_numpy()
    places = np.flatnonzero(~np.isnan(accuracy))
    below = np.flatnonzero(accuracy[places] < target - TOLERANCE)
    first = int(below[-1]) + 1 if len(below) else 0
    return spent(rounds, int(places[first])) if first < len(places) else None


def last_evaluation(rounds: pd.DataFrame) -> Spent:
    """Return what one run had spent at its last evaluation; nothing where there was none."""
    places = np.flatnonzero(~np.isnan(rounds["accuracy"].to_numpy()))
    return spent(rounds, int(places[-1])) if len(places) else Spent(0, 0.0, 0, 0.0)


def accuracy_within(rounds: pd.DataFrame, budget: Spent | None) -> dict[str, float]:
    """Return the last accuracy of one run within so many seconds, bytes and joules, each alone.

    Not a number where the run had no accuracy by then.
    """
    names = ("accuracy_at_time", "accuracy_at_bytes", "accuracy_at_energy")
    accuracy = rounds["accuracy"].to_numpy()
    sent = (rounds["download_bytes"] + rounds["upload_bytes"]).cumsum().to_numpy()
    used = (rounds["closed_s"].to_numpy(), sent, rounds["energy_j"].cumsum().to_numpy())
    if budget is None:
        return dict.fromkeys(names, math.nan)
    limits = (budget.at_s, budget.transfer_bytes, budget.energy_j)
    row = {}
    for name, spent_so_far, limit in zip(names, used, limits, strict=True):
        known = accuracy[(spent_so_far <= limit * (1 + TOLERANCE)) & ~np.isnan(accuracy)]
        row[name] = float(known[-1]) if len(known) else math.nan
    return row


def to_target(rounds: pd.DataFrame, target: float | None) -> dict[str, float | bool]:
    """What one run took to the target, and to its last evaluation; NaN where it did not get there.

    ``spent_*`` bounds from below what a run would take that did not reach the target.
    """
    hit = reached(rounds, target) if target is not None else None
    stays = sustained(rounds, target) if target is not None else None
    row: dict[str, float | bool] = {
        "target_accuracy": math.nan if target is None else target,
        "is_reached": hit is not None,
    }
    row |= dict(zip(TO_TARGET.values(), hit or [math.nan] * 4, strict=True))
    row["time_to_stay_s"] = stays.at_s if stays else math.nan
    return row | dict(zip(TO_TARGET, last_evaluation(rounds), strict=True))


def choose_target(
    runs: Sequence[pd.DataFrame], given: float | None = None, *, smoothing: int = SMOOTHING
) -> Target:
    """Return the given target, or the highest multiple of 5 points that every run reached.

    ``runs`` are the rounds of each, and what counts is the mean of ``smoothing`` evaluations.
    Where some run reached no multiple above its initial model, it is the highest that any run
    reached. Raises RunError if ``given`` is not an accuracy.
    """
    if given is not None:
        if not 0 < given <= 1:
            raise RunError(f"a target accuracy must be a share in (0, 1], got {given}")
        return Target(given, "as asked for")
    judged = [evaluated(rounds)["accuracy"] for rounds in runs]
    judged = [accuracy for accuracy in judged if len(accuracy) >= smoothing]
    if not judged:
        is_blind = not any(len(evaluated(rounds)) for rounds in runs)
        often = "" if is_blind else f" {smoothing} times"
        return Target(None, f"no run evaluated its model{often}")
    start = max(_steps(float(accuracy.iloc[0])) for accuracy in judged)
    best = [float(accuracy.rolling(smoothing).mean().max()) for accuracy in judged]
    reached_steps = [_steps(accuracy) for accuracy in best]
    for steps, who in ((min(reached_steps), "every run"), (max(reached_steps), "any run")):
        if steps > start:
            return Target(
                steps / STEPS_PER_UNIT, f"the highest multiple of 5 points that {who} reached"
            )
    return Target(None, "no run rose by a multiple of 5 points above its initial model")


def accuracy_area(rounds: pd.DataFrame, until_s: float) -> float:
    """Mean accuracy of one run over [0, until_s], linear between evaluations; NaN without any."""
    time_s, accuracy = rounds["closed_s"].to_numpy(), rounds["accuracy"].to_numpy()
    is_known = ~np.isnan(accuracy)
    time_s, accuracy = time_s[is_known], accuracy[is_known]
    if len(time_s) < 2 or not 0 < until_s <= time_s[-1]:
        return math.nan
    inside = time_s < until_s
    at_s = np.append(time_s[inside], until_s)
    values = np.append(accuracy[inside], np.interp(until_s, time_s, accuracy))
    return float((np.diff(at_s) * (values[1:] + values[:-1]) / 2).sum() / until_s)  # by trapezoids


def mean_waiting_s(rounds: pd.DataFrame) -> float:
    """Mean over one run's rounds with an aggregation of W_r, the mean wait of those merged."""
    return _mean(rounds["waiting_s"].to_numpy()[rounds["num_aggregated"].to_numpy() > 0])


def of_rounds(rounds: pd.DataFrame) -> dict[str, float]:
    """What one run came to, by its rounds."""
    accuracy = rounds["accuracy"].to_numpy()
    accuracy = accuracy[~np.isnan(accuracy)]
    counts = ("num_oom", "num_late", "num_offline", "num_crashed", "num_lost", "num_rejected")
    sums = (*counts, "num_sat_out", "download_bytes", "upload_bytes", "energy_j")
    return {
        "lost_turn_share": _lost_turn_share(rounds),
        "final_accuracy": float(accuracy[-1]) if len(accuracy) else math.nan,
        "best_accuracy": float(accuracy.max()) if len(accuracy) else math.nan,
        **_of_other_tasks(rounds),
        "num_rounds": int(rounds["round"].to_numpy().max()),
        "simulated_s": float(rounds["closed_s"].to_numpy().max()),
        "waiting_s": mean_waiting_s(rounds),
        **{name: _plain(rounds[name].to_numpy().sum()) for name in sums if name in rounds},
    }


def _of_other_tasks(rounds: pd.DataFrame) -> dict[str, float]:
    """Return the last and best value of each metric of tasks that no accuracy judges."""
    found = {}
    for metric in OF_OTHER_TASKS:
        if metric.name in rounds:
            values = rounds[metric.name].dropna().tolist()
            found[f"final_{metric.name}"] = values[-1] if values else math.nan
            found[f"best_{metric.name}"] = metric.best(values)
    return found


def _lost_turn_share(rounds: pd.DataFrame) -> float:
    """Return the share of turns of devices in one run's cohorts that merged nothing.

    A turn is lost where the device sat out, met OOM, or its update did not reach the merge.
    """
    lost = [name for name in LOSSES if name in rounds]
    num_lost = float(sum(rounds[name].sum() for name in lost))
    return _ratio(num_lost, num_lost + float(rounds["num_aggregated"].sum()))


def of_clients(clients: pd.DataFrame) -> dict[str, float]:
    """What one run came to, by the plans that it handed out."""
    # In arrays: of a thousand runs, frames within frames would take most of the time.
    of = {str(name): column.to_numpy() for name, column in clients.items()}
    merged, ran = of["outcome"] == "aggregated", of["outcome"] != "oom"
    took_s = of["finished_s"] - of["started_s"]
    given_s = float((took_s + of["waiting_s"]).sum())
    worked_s = float(sum(of[name].sum() for name in ("download_s", "train_s", "upload_s")))
    lost_j = of["energy_compute_j"] + of["energy_radio_j"]
    staleness, peak = of["staleness"][merged], of["peak_memory_bytes"]
    return {
        "planned_memory_bytes": _mean(peak),
        "peak_memory_bytes": _max(peak[ran]),
        "peak_memory_share": _max(peak[ran] / of["memory_budget_bytes"][ran]),
        "straggler_share": straggler_share(clients),
        "utilisation": _ratio(worked_s, given_s),
        "compute_utilisation": _ratio(float(of["train_s"].sum()), given_s),
        "lost_work_share": _ratio(float(took_s[~merged].sum()), float(took_s.sum())),
        "lost_s": float(took_s[~merged].sum()),
        "lost_bytes": int((of["download_bytes"] + of["upload_bytes"])[~merged].sum()),
        "lost_j": float(lost_j[~merged].sum()),
        "mean_staleness": _mean(staleness),
        "max_staleness": _max(staleness),
    }


def straggler_share(clients: pd.DataFrame) -> float:
    """Share of one run's plans, OOM left out, that were late or far slower than their round's."""
    outcome = clients["outcome"].to_numpy()
    ran = outcome != "oom"
    took_s = (clients["finished_s"].to_numpy() - clients["started_s"].to_numpy())[ran]
    _, group, sizes = np.unique(
        clients["round"].to_numpy()[ran], return_inverse=True, return_counts=True
    )
    rising_s = took_s[np.lexsort((took_s, group))]
    first = np.cumsum(sizes) - sizes
    median_s = (rising_s[first + (sizes - 1) // 2] + rising_s[first + sizes // 2]) / 2
    return _mean((took_s > STRAGGLER_FACTOR * median_s[group]) | (outcome[ran] == "late"))


def of_devices(devices: pd.DataFrame, clients: pd.DataFrame) -> dict[str, float]:
    """What one run came to for the devices of its fleet."""
    merged = clients["outcome"].to_numpy() == "aggregated"
    updates = np.unique(clients["device_id"].to_numpy()[merged], return_counts=True)[1].astype(
        float
    )
    num_squares = len(devices) * float((updates**2).sum())
    expected = devices["expected_accuracy"].to_numpy()
    expected = expected[~np.isnan(expected)]
    quantiles = np.quantile(expected, list(QUANTILES.values())) if len(expected) else [math.nan] * 5
    return {
        "participation_fairness": _ratio(float(updates.sum()) ** 2, num_squares),
        **{
            f"device_accuracy_{name}": float(value)
            for name, value in zip(QUANTILES, quantiles, strict=True)
        },
    }


def lost_work(clients: pd.DataFrame) -> pd.DataFrame:
    """One row a run and outcome other than aggregated: num_plans, lost_s, lost_bytes, lost_j.

    ``clients`` are those of any number of runs, as ``RunSet.clients`` gives them.
    """
    lost = clients[clients["outcome"] != "aggregated"]
    keys = [lost[name] for name in ("run", "variant", "seed", "outcome")]
    sums = _lost(lost).assign(num_plans=1).groupby(keys, observed=True, sort=False).sum()
    return sums.reset_index()


def waiting_distribution(clients: pd.DataFrame) -> pd.DataFrame:
    """One row a variant and wait: the share of its aggregated plans that waited at most so long."""
    merged = clients[clients["outcome"] == "aggregated"]
    by_variant = merged.groupby("variant", observed=True, sort=False)["waiting_s"]
    counts = by_variant.value_counts(normalize=True, sort=False).sort_index()
    share = counts.groupby(level="variant", observed=True).cumsum()
    return share.rename("share").reset_index()


def _lost(clients: pd.DataFrame) -> pd.DataFrame:
    """Seconds, bytes and joules of each plan; waiting idly for the round is no work."""
    return pd.DataFrame(
        {
            "lost_s": clients["finished_s"] - clients["started_s"],
            "lost_bytes": clients["download_bytes"] + clients["upload_bytes"],
            "lost_j": clients["energy_compute_j"] + clients["energy_radio_j"],
        }
    )


def _plain(number: float) -> float:
    """A number of Python's own: counts stay whole."""
    return int(number) if float(number).is_integer() else float(number)


def _mean(values: npt.NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else math.nan


def _max(values: npt.NDArray[Any]) -> float:
    return float(values.max()) if len(values) else math.nan


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan


def _steps(accuracy: float) -> int:
    """The number of whole steps of 5 points in it."""
    return math.floor((accuracy + TOLERANCE) * STEPS_PER_UNIT)
