"""Compares two variants on the same seeds: how much they differ, and if that can be chance.

Both runs of a pair met the same devices, links and data, so what the seed brings cancels. The
section "Told apart" of docs/metrics.md derives the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

from analysis.metrics.definitions import METRICS, Metric
from traces.arrays import BoolArray, FloatArray, IntArray

CONFIDENCE = 0.95
MIN_SEEDS = 3  # for fewer seeds, values are printed without an interval
NUM_RESAMPLES = 10_000
_COLUMNS = tuple(
    dict.fromkeys(name for one in METRICS for name in (one.column, one.at_least) if name)
)
SEED = 20_000  # the bootstrap draws from a fixed seed: the same runs give the same interval


class Interval(NamedTuple):
    """An interval has a centre and confidence limits, NaN where there are too few values."""

    center: float
    low: float
    high: float


def students(values: FloatArray) -> Interval:
    """Return the mean with Student's interval."""
    center = float(values.mean()) if len(values) else math.nan
    if len(values) < MIN_SEEDS:
        return Interval(center, math.nan, math.nan)
    quantile = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    half = quantile * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Interval(center, center - half, center + half)


@lru_cache(maxsize=16)
def resamples(num: int) -> IntArray:
    """Return the places that the bootstrap draws of ``num`` values, one row a resample."""
    drawn = np.random.default_rng(SEED).integers(num, size=(NUM_RESAMPLES, num))
    drawn.setflags(write=False)
    return drawn


def bootstrapped(values: FloatArray) -> Interval:
    """Return the mean with the percentile interval of resampled means."""
    center = float(values.mean()) if len(values) else math.nan
    if len(values) < MIN_SEEDS:
        return Interval(center, math.nan, math.nan)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values[resamples(len(values))].mean(axis=1), (tail, 1 - tail))
    return Interval(center, float(low), float(high))


def p_value(differences: FloatArray) -> float:
    """Return the two-sided p value of Student's paired test; NaN for fewer than three pairs."""
    num = len(differences)
    if num < MIN_SEEDS:
        return math.nan
    center, spread = float(differences.mean()), float(differences.std(ddof=1))
    if spread <= 1e-12 * abs(center) or spread == 0:
        return 1.0 if center == 0 else 0.0
    return float(2 * stdtr(num - 1, -abs(center) / (spread / math.sqrt(num))))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values adjusted by Holm's step-down rule; NaN stays and does not count."""
    adjusted = [math.nan] * len(p_values)
    known = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    worst = 0.0
    for rank, (p, place) in enumerate(known):
        worst = max(worst, min(1.0, (len(known) - rank) * p))
        adjusted[place] = worst
    return adjusted


class SeedRuns(NamedTuple):
    """Seed runs hold the metrics of a variant's runs, one run for each seed, by rising seed."""

    seeds: IntArray  # (runs,)
    columns: Mapping[str, FloatArray]  # (runs,) for each metric; NaN where a run lacks the number

    def values(self, column: str) -> FloatArray:
        """Return the column, NaN for every run where there is none."""
        return self.columns.get(column, np.full(len(self.seeds), math.nan))


def by_variant(per_run: pd.DataFrame) -> dict[str, SeedRuns]:
    """Return the runs of each variant; of several of one seed the first counts."""
    names = [name for name in _COLUMNS if name in per_run]
    runs = per_run[["variant", "seed", *names]].drop_duplicates(["variant", "seed"])
    variants, seeds = runs["variant"].to_numpy(), runs["seed"].to_numpy(np.int64)
    numbers = runs[names].to_numpy(float)
    found = {}
    for variant in dict.fromkeys(variants):
        places = np.flatnonzero(variants == variant)
        places = places[np.argsort(seeds[places])]
        columns = dict(zip(names, numbers[places].T, strict=True))
        found[str(variant)] = SeedRuns(seeds[places], columns)
    return found


class Pairs(NamedTuple):
    """Pairs are runs of the same seed of two variants, with one metric of both.

    A run that did not reach the target counts with what it had spent, and is marked as a bound.
    """

    values: FloatArray  # (pairs, 2)
    is_bound: BoolArray  # (pairs, 2)


def pairs(one: SeedRuns, other: SeedRuns, metric: Metric) -> Pairs:
    """Return one row for each seed that both variants ran, where both have a number."""
    _, *places = np.intersect1d(one.seeds, other.seeds, assume_unique=True, return_indices=True)
    values, bounds = [], []
    for runs, at in zip((one, other), places, strict=True):
        found = runs.values(metric.column)[at]
        is_bound = np.isnan(found) & bool(metric.at_least)
        if metric.at_least:
            found = np.where(is_bound, runs.values(metric.at_least)[at], found)
        values.append(found)
        bounds.append(is_bound)
    both, is_bounds = np.stack(values, axis=1), np.stack(bounds, axis=1)
    is_known = ~np.isnan(both).any(axis=1)
    return Pairs(both[is_known], is_bounds[is_known])


def is_ratio(metric: Metric, values: FloatArray) -> bool:
    """Return True where a metric is compared by its ratio: positive, and no share."""
    return metric.scale.units[0].name != "%" and bool((values > 0).all())


def differences(per_run: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Return one row for each variant and metric: its change against the baseline, seed by seed.

    ``kind`` is "ratio" (the geometric mean of the variant's value over the baseline's) or
    "difference" (the mean, in SI units); ``low`` and ``high`` are Student's interval, on the
    logarithm for ratios, ``bootstrap_low`` and ``bootstrap_high`` the bootstrap's. ``p_holm`` is
    adjusted over the variants of one metric. Pairs of which a run did not reach the target are
    left out and counted in ``num_censored``.
    """
    others = [one for one in dict.fromkeys(per_run["variant"]) if one != baseline]
    runs = by_variant(per_run)
    rows = []
    for metric in METRICS:
        if metric.column not in per_run or metric.estimate == "ratio" or not metric.better:
            continue
        own = [_difference(runs, metric, variant, baseline) for variant in others]
        adjusted = holm([p for _, p in own])
        rows += [
            {**row, "p": p, "p_holm": of_all}
            for (row, p), of_all in zip(own, adjusted, strict=True)
        ]
    return pd.DataFrame(rows)


def _difference(
    runs: Mapping[str, SeedRuns], metric: Metric, variant: str, baseline: str
) -> tuple[dict[str, object], float]:
    """Return the row of one variant and metric, and the p value of its test."""
    found = pairs(runs[variant], runs[baseline], metric)
    is_censored = found.is_bound.any(axis=1)
    known = found.values[~is_censored]
    by_ratio = is_ratio(metric, known)
    values = np.log(known[:, 0] / known[:, 1]) if by_ratio else known[:, 0] - known[:, 1]
    ends = (*students(values), *bootstrapped(values)[1:])
    center, low, high, boot_low, boot_high = np.exp(ends) if by_ratio else ends
    row = {
        "variant": variant,
        "baseline": baseline,
        "metric": metric.column,
        "kind": "ratio" if by_ratio else "difference",
        "num_pairs": len(known),
        "num_censored": int(is_censored.sum()),
        "value": center,
        "low": low,
        "high": high,
        "bootstrap_low": boot_low,
        "bootstrap_high": boot_high,
    }
    return row, p_value(values)


def beats(one: SeedRuns, other: SeedRuns, metric: Metric) -> float:
    """Return the p value of "one is better than other", where a bound can show it at most.

    NaN where fewer than three seeds are shared, or one of the better variant's runs is a bound.
    """
    values, is_bound = pairs(one, other, metric)
    if is_bound[:, 0].any():
        return math.nan
    by_ratio = is_ratio(metric, values)
    change = np.log(values[:, 0] / values[:, 1]) if by_ratio else values[:, 0] - values[:, 1]
    if not len(change):
        return math.nan
    is_better = change.mean() < 0 if metric.better == "lower" else change.mean() > 0
    return p_value(change) if is_better else math.nan
