"""Estimates one number from the runs of several seeds, with its confidence interval.

The section "Over seeds" of docs/metrics.md derives the estimates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.metrics.definitions import METRICS, Metric
from analysis.metrics.paired import CONFIDENCE, MIN_SEEDS, resamples, students
from traces.arrays import FloatArray


class Estimate(NamedTuple):
    """An estimate is a number in [value, upper], with the confidence interval [low, high].

    ``upper`` is infinite where nothing bounds it from above. NaN: no number, or no interval.
    """

    value: float
    upper: float
    low: float
    high: float
    num_known: int  # the number of runs that have the number or a bound on it


NOTHING = Estimate(math.nan, math.nan, math.nan, math.nan, 0)


def mean(values: Sequence[float], *, least: float = 0.0, most: float = math.inf) -> Estimate:
    """Return the mean of the values that are numbers, with Student's interval.

    The interval is cut at what the quantity can be: ``least`` and ``most``. It holds the true
    mean as often as the whole one.
    """
    known = np.array([value for value in values if not math.isnan(value)])
    if not len(known):
        return NOTHING
    center, low, high = students(known)
    if len(known) >= MIN_SEEDS:
        low, high = max(low, min(least, center)), min(high, most)
    return Estimate(center, center, low, high, len(known))


def median(lower: Sequence[float], upper: Sequence[float]) -> Estimate:
    """Return the median of numbers of which each is known to lie in [lower, upper]."""
    return _median(np.array(lower, dtype=float), np.array(upper, dtype=float))


def ratio(lower: Sequence[float], upper: Sequence[float]) -> Estimate:
    """Return the geometric mean of ratios, with Student's interval of their logarithm.

    Where a ratio is only bounded, it is the ``median`` on the logarithm. Either way the estimate
    of the inverses is the inverse.
    """
    with np.errstate(divide="ignore"):
        low, high = np.log(np.array(lower, float)), np.log(np.array(upper, float))
    if len(low) and np.array_equal(low, high):
        value, least, most = map(math.exp, students(low))
        return Estimate(value, value, least, most, len(low))
    logs = _median(low, high)
    value, upper_value, least, most = map(math.exp, logs[:4])
    return Estimate(value, upper_value, least, most, logs.num_known)


def _median(lower: FloatArray, upper: FloatArray) -> Estimate:
    if not len(lower):
        return NOTHING
    center = float(np.median(lower)), float(np.median(upper))
    if len(lower) < MIN_SEEDS:
        return Estimate(*center, math.nan, math.nan, len(lower))
    drawn = resamples(len(lower))
    # The quantiles are taken without interpolation, since some resamples may be infinite.
    tail = (1 - CONFIDENCE) / 2
    lowest = np.median(lower[drawn], axis=1)
    highest = lowest if np.array_equal(lower, upper) else np.median(upper[drawn], axis=1)
    low = np.quantile(lowest, tail, method="lower")
    high = np.quantile(highest, 1 - tail, method="higher")
    return Estimate(*center, float(low), float(high), len(lower))


def speed_ups(per_run: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Return the time to target of the baseline's run of the same seed over that of each run.

    Columns speed_up_lower and speed_up_upper, indexed as ``per_run``: equal where both reached the
    target, else bounds. The baseline's own runs have no row, nor has one whose seed the baseline
    did not run, or that was at the target from the start.
    """
    times = per_run[["variant", "seed"]].assign(
        lower_s=per_run["time_to_target_s"].fillna(per_run["spent_s"]),
        upper_s=per_run["time_to_target_s"].fillna(math.inf),
    )
    base = times[times["variant"] == baseline].drop_duplicates("seed").set_index("seed")
    is_other = times["variant"] != baseline
    pairs = times[is_other & (times["lower_s"] > 0) & times["seed"].isin(base.index)]
    bases = base.loc[pairs["seed"]].set_index(pairs.index)
    return pd.DataFrame(
        {
            "speed_up_lower": bases["lower_s"] / pairs["upper_s"],
            "speed_up_upper": bases["upper_s"] / pairs["lower_s"],
        }
    )


def over_seeds(per_run: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each variant and metric: value, upper, low, high, num_known, num_runs.

    ``per_run`` has one row a run, with the columns variant, seed and those of the metrics; a
    metric whose columns it lacks has no rows.
    """
    rows = []
    for variant, runs in per_run.groupby("variant", sort=False, observed=True):
        for metric in METRICS:
            if (found := _estimate(runs, metric)) is not None:
                name = {"variant": variant, "metric": metric.column}
                rows.append({**name, **found._asdict(), "num_runs": len(runs)})
    return pd.DataFrame(rows)


def _estimate(runs: pd.DataFrame, metric: Metric) -> Estimate | None:
    """Return the metric over the runs of one variant; None where they lack its columns."""
    if metric.estimate == "ratio":
        pairs = runs[["speed_up_lower", "speed_up_upper"]].dropna()
        return ratio(*(pairs[name].tolist() for name in pairs))
    if metric.column not in runs:
        return None
    values = runs[metric.column].astype(float)
    if metric.estimate == "mean":
        least, most = metric.possible
        return mean(values.tolist(), least=least, most=most)
    lower = values.fillna(runs[metric.at_least])
    return median(lower.tolist(), values.fillna(math.inf).tolist())
