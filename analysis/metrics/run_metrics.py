"""Computes the numbers that a run is judged by, whose formulas stand in docs/metrics.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.metrics.definitions import BESIDE, SMOOTHING, wrong_target
from analysis.runs.files import RunError
from devices.tasks.task import Metric
from simulator.log.records import NUM_UNMERGED
from traces.arrays import FloatArray

STEPS_PER_UNIT = 20  # default targets are multiples of 1 / 20, or 5 points
STRAGGLER_FACTOR = 1.5  # a straggler takes this multiple of the median time of a round's plans
QUANTILES = {"min": 0.0, "q10": 0.1, "q25": 0.25, "median": 0.5, "max": 1.0}  # over devices
TOLERANCE = 1e-6  # a value stored as float32 still reaches the target it equals

_NOTHING = pd.Series(dtype=float)

LOSSES = ("num_sat_out", *NUM_UNMERGED)
"""The counts of a round's devices that were asked and brought no update that was merged."""

TO_TARGET = {
    "spent_rounds": "rounds_to_target",
    "spent_s": "time_to_target_s",
    "spent_bytes": "bytes_to_target",
    "spent_energy_j": "energy_to_target_j",
}
"""What was spent by the last evaluation, and the same to the target."""
OF_TIME = (
    "time_to_target_s", "time_to_stay_s", "spent_s", "energy_to_target_j", "spent_energy_j",
    "simulated_s", "waiting_s", "energy_j",
)  # fmt: skip
"""Columns that are not known of a run that was charged no time."""
SPENT = ("round", "closed_s", "download_bytes", "upload_bytes", "energy_j")


@dataclass(frozen=True)
class Target:
    """A target is the value of the first metric that runs are timed to; None: there is none."""

    value: float | None
    rule: str  # in words, how it was chosen


class Spent(NamedTuple):
    """Spent holds the amounts that a run has spent up to and including one of its rounds."""

    round: int
    at_s: float
    transfer_bytes: int
    energy_j: float


def is_timed(rounds: pd.DataFrame) -> bool:
    """Return False for a run that was charged no time, whose rounds all closed at instant 0."""
    closed_s = rounds["closed_s"].to_numpy()
    return len(closed_s) < 2 or float(closed_s.max()) > 0


def of_time(metric: Metric) -> tuple[str, ...]:
    """Return the columns of what a run came to that need a clock, and so are NaN without one."""
    at_equal = (f"{metric.name}_{what}" for what in ("at_time", "at_energy", "area"))
    return (*OF_TIME, *at_equal)


def evaluated(rounds: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """Return the rounds of one run at which its model was evaluated, round 0 included."""
    return rounds[rounds[metric.name].notna()]


def smoothed(rounds: pd.DataFrame, metric: Metric, evaluations: int = SMOOTHING) -> pd.DataFrame:
    """Return the rounds of one run, the metric replaced by the mean of the last few evaluations.

    It is not a number before there are so many.
    """
    if evaluations == 1:
        return rounds
    means = evaluated(rounds, metric)[metric.name].rolling(evaluations).mean()
    return rounds.assign(**{metric.name: means})


def spent(rounds: pd.DataFrame, row: int) -> Spent:
    """Return what one run took up to and with the round at this place."""
    upto = {name: rounds[name].to_numpy()[: row + 1] for name in SPENT}
    return Spent(
        round=int(upto["round"][-1]),
        at_s=float(upto["closed_s"][-1]),
        transfer_bytes=int(upto["download_bytes"].sum() + upto["upload_bytes"].sum()),
        energy_j=float(upto["energy_j"].sum()),
    )


def _is_at(values: FloatArray, target: float, metric: Metric) -> npt.NDArray[np.bool_]:
    """Return which values reach the target, within the rounding of a float32; no NaN does."""
    slack = TOLERANCE * max(1.0, abs(target))
    is_at = values >= target - slack if metric.better == "higher" else values <= target + slack
    return np.asarray(is_at)


def reached(rounds: pd.DataFrame, target: float, metric: Metric) -> Spent | None:
    """Return what one run took to its first value as good as ``target``; None: not reached.

    ``rounds`` are smoothed, wherever a crossing is reported.
    """
    hits = np.flatnonzero(_is_at(rounds[metric.name].to_numpy(), target, metric))
    return spent(rounds, int(hits[0])) if len(hits) else None


def sustained(rounds: pd.DataFrame, target: float, metric: Metric) -> Spent | None:
    """Return what one run took until its metric stayed as good as ``target`` to the end.

    None where its last value is worse.
    """
    values = rounds[metric.name].to_numpy()
    places = np.flatnonzero(~np.isnan(values))
    worse = np.flatnonzero(~_is_at(values[places], target, metric))
    first = int(worse[-1]) + 1 if len(worse) else 0
    return spent(rounds, int(places[first])) if first < len(places) else None


def last_evaluation(rounds: pd.DataFrame, metric: Metric) -> Spent:
    """Return what one run had spent at its last evaluation; nothing where there was none."""
    places = np.flatnonzero(~np.isnan(rounds[metric.name].to_numpy()))
    return spent(rounds, int(places[-1])) if len(places) else Spent(0, 0.0, 0, 0.0)


def value_within(rounds: pd.DataFrame, budget: Spent | None, metric: Metric) -> dict[str, float]:
    """Return the last value of the metric within so many seconds, bytes and joules, each alone.

    Not a number where the run had none by then.
    """
    names = tuple(f"{metric.name}_at_{what}" for what in ("time", "bytes", "energy"))
    values = rounds[metric.name].to_numpy()
    sent = (rounds["download_bytes"] + rounds["upload_bytes"]).cumsum().to_numpy()
    used = (rounds["closed_s"].to_numpy(), sent, rounds["energy_j"].cumsum().to_numpy())
    if budget is None:
        return dict.fromkeys(names, math.nan)
    limits = (budget.at_s, budget.transfer_bytes, budget.energy_j)
    row = {}
    for name, spent_so_far, limit in zip(names, used, limits, strict=True):
        known = values[(spent_so_far <= limit * (1 + TOLERANCE)) & ~np.isnan(values)]
        row[name] = float(known[-1]) if len(known) else math.nan
    return row


def to_target(
    rounds: pd.DataFrame, target: float | None, metric: Metric
) -> dict[str, float | bool]:
    """Return what one run took to the target, NaN where not reached, and to its last evaluation.

    ``spent_*`` bounds from below what a run would take that did not reach the target, and is NaN
    for a run without an evaluation, of which nobody knows.
    """
    hit = reached(rounds, target, metric) if target is not None else None
    stays = sustained(rounds, target, metric) if target is not None else None
    row: dict[str, float | bool] = {
        f"target_{metric.name}": math.nan if target is None else target,
        "is_reached": hit is not None,
    }
    row |= dict(zip(TO_TARGET.values(), hit or [math.nan] * 4, strict=True))
    row["time_to_stay_s"] = stays.at_s if stays else math.nan
    spent = last_evaluation(rounds, metric) if len(evaluated(rounds, metric)) else [math.nan] * 4
    return row | dict(zip(TO_TARGET, spent, strict=True))


def choose_target(
    runs: Sequence[pd.DataFrame],
    given: float | None = None,
    *,
    metric: Metric,
    smoothing: int = SMOOTHING,
) -> Target:
    """Return the given target, or the best round value that every run reached.

    ``runs`` are the rounds of each, and what counts is the mean of ``smoothing`` evaluations. A
    share that is better when higher is rounded to 5 points, any other metric to two digits, both
    towards the worse. Where some run reached no such value beyond every initial model, it is the
    best that any run reached. Raises RunError if ``given`` is no value of the metric.
    """
    if given is not None:
        if wrong := wrong_target(metric, given):
            raise RunError(wrong)
        return Target(given, "as asked for")
    judged = [evaluated(rounds, metric)[metric.name] for rounds in runs]
    judged = [values for values in judged if len(values) >= smoothing]
    if not judged:
        is_blind = not any(len(evaluated(rounds, metric)) for rounds in runs)
        often = "" if is_blind else f" {smoothing} times"
        return Target(None, f"no run evaluated its model{often}")
    starts = np.array([values.iloc[0] for values in judged], dtype=float)
    best = sorted(metric.best(values.rolling(smoothing).mean()) for values in judged)
    worst_first = best if metric.better == "higher" else best[::-1]
    for value, who in ((worst_first[0], "every run"), (worst_first[-1], "any run")):
        target = _round(value, metric)
        if math.isfinite(target) and not _is_at(starts, target, metric).any():
            return Target(target, f"the {_best_round(metric)} that {who} reached")
    if _is_in_points(metric):
        return Target(None, "no run rose by a multiple of 5 points above its initial model")
    return Target(None, "no run reached a number of two digits that no initial model has")


def _is_in_points(metric: Metric) -> bool:
    return metric.unit == "share" and metric.better == "higher"


def _best_round(metric: Metric) -> str:
    """Return in words which value a default target is of those that were reached."""
    if _is_in_points(metric):
        return "highest multiple of 5 points"
    return f"{'highest' if metric.better == 'higher' else 'lowest'} number of two digits"


def _round(value: float, metric: Metric) -> float:
    """Return the best round value that is no better than this one."""
    if not math.isfinite(value):
        return value
    if _is_in_points(metric):
        return math.floor((value + TOLERANCE) * STEPS_PER_UNIT) / STEPS_PER_UNIT
    number = Decimal(value)
    second_digit = Decimal(1).scaleb(number.adjusted() - 1)
    return float(
        number.quantize(second_digit, ROUND_FLOOR if metric.better == "higher" else ROUND_CEILING)
    )


def mean_over_time(rounds: pd.DataFrame, until_s: float, metric: Metric) -> float:
    """Return the mean of one run's metric over [0, until_s], linear between evaluations.

    Not a number without two evaluations, or where it is not known for so long.
    """
    time_s, values = rounds["closed_s"].to_numpy(), rounds[metric.name].to_numpy()
    is_known = ~np.isnan(values)
    time_s, values = time_s[is_known], values[is_known]
    if len(time_s) < 2 or not 0 < until_s <= time_s[-1]:
        return math.nan
    inside = time_s < until_s
    at_s = np.append(time_s[inside], until_s)
    ends = np.append(values[inside], np.interp(until_s, time_s, values))
    return float((np.diff(at_s) * (ends[1:] + ends[:-1]) / 2).sum() / until_s)  # trapezoidal rule


def mean_waiting_s(rounds: pd.DataFrame) -> float:
    """Return the mean of W_r, the mean wait of those merged, over rounds with an aggregation."""
    return _mean(rounds["waiting_s"].to_numpy()[rounds["num_aggregated"].to_numpy() > 0])


def of_rounds(rounds: pd.DataFrame, metric: Metric) -> dict[str, float]:
    """Return what one run came to, by its rounds."""
    counts = ("num_oom", "num_late", "num_offline", "num_crashed", "num_lost", "num_rejected")
    sums = (*counts, "num_sat_out", "download_bytes", "upload_bytes", "energy_j")
    return {
        "lost_turn_share": _lost_turn_share(rounds),
        **_last_and_best(rounds, metric),
        "num_rounds": int(rounds["round"].to_numpy().max()),
        "simulated_s": float(rounds["closed_s"].to_numpy().max()),
        "waiting_s": mean_waiting_s(rounds),
        **{name: _plain(rounds[name].to_numpy().sum()) for name in sums if name in rounds},
    }


def _last_and_best(rounds: pd.DataFrame, first: Metric) -> dict[str, float]:
    """Return the last and best value of the first metric, and of those beside it."""
    found = {}
    for metric in (first, *(one for one in BESIDE if one.name in rounds)):
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
    """Return what one run came to, by its dispatched plans."""
    # NumPy arrays are used, since pandas frames would take most of the time for a thousand runs.
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
    """Return the share of plans, OOM left out, that were late or far slower than their round's."""
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


def of_devices(devices: pd.DataFrame, clients: pd.DataFrame, metric: Metric) -> dict[str, float]:
    """Return what one run came to for the devices of its fleet, from the worst to the best."""
    merged = clients["outcome"].to_numpy() == "aggregated"
    updates = np.unique(clients["device_id"].to_numpy()[merged], return_counts=True)[1].astype(
        float
    )
    num_squares = len(devices) * float((updates**2).sum())
    expected, own = (
        devices.get(f"{what}_{metric.name}", _NOTHING).dropna().to_numpy()
        for what in ("expected", "own")
    )
    row = {"participation_fairness": _ratio(float(updates.sum()) ** 2, num_squares)}
    row |= _quantiles(f"device_{metric.name}", expected, metric)
    if len(own):
        row |= {
            f"own_{metric.name}_mean": _mean(own),
            **_quantiles(f"own_{metric.name}", own, metric),
        }
    return row


def _quantiles(name: str, values: FloatArray, metric: Metric) -> dict[str, float]:
    """Return a metric's values over devices from the worst to the best, NaN where none is known."""
    sign = 1.0 if metric.better == "higher" else -1.0
    shares = list(QUANTILES.values())
    found = sign * np.quantile(sign * values, shares) if len(values) else [math.nan] * len(shares)
    return {f"{name}_{which}": float(value) for which, value in zip(QUANTILES, found, strict=True)}


def _plain(number: float) -> float:
    """Return a number of Python's own: counts stay whole."""
    return int(number) if float(number).is_integer() else float(number)


def _mean(values: npt.NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else math.nan


def _max(values: npt.NDArray[Any]) -> float:
    return float(values.max()) if len(values) else math.nan


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan
