"""Fits the model of a link to traces: the chain whose autocorrelation is nearest to theirs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from traces.arrays import FloatArray
from traces.bandwidth import BandwidthTrace
from traces.generators.diurnal import equally_likely
from traces.generators.link_model import LinkModel, RateChain
from traces.statistics import OUTAGE_SHARE_OF_MEAN

NUM_LEVELS = 6
"""Conditions of a fitted chain besides the outage."""
NUM_RATES = 20
"""Equally likely rates in each condition of a fitted chain."""
MAX_FITTED_STEPS = 200_000
"""Most steps of a trace in a fit; a longer one is fitted with a coarser step."""
WINDOWS = (1, 3, 5, 9, 15, 25, 41)
"""Numbers of steps that a fit tries to average the rate over, to tell conditions apart."""
MEMORIES = tuple(np.linspace(0.0, 0.95, 20).tolist())
"""Values of ``RateChain.memory`` that a fit tries."""
LAGS = (1, 2, 3, 5, 8, 13, 20, 30, 50)
"""Lags in steps at which a fit matches the autocorrelation."""


def fit_link(
    name: str, downlinks: Sequence[BandwidthTrace], uplinks: Sequence[BandwidthTrace]
) -> LinkModel:
    """Return the model fitted to these links; ``uplinks`` is empty where none was measured.

    Each link is fitted as a multiple of its own mean, and ``spread`` says how the means differ.
    Raises ValueError without a link, and for a link that never carries anything.
    """
    if not downlinks:
        raise ValueError("a fit needs at least one link, got none")
    lengths_s = np.concatenate([trace.steps.lengths_s for trace in downlinks])
    longest_s = max(trace.period_s for trace in downlinks)
    step_s = max(float(np.median(lengths_s)), longest_s / MAX_FITTED_STEPS)
    means = np.array([trace.mean_bytes_per_s for trace in downlinks])
    return LinkModel(
        name,
        fit_chain(downlinks, step_s),
        fit_chain(uplinks, step_s) if uplinks else None,
        step_s,
        duration_s=max(step_s, float(np.median([trace.period_s for trace in downlinks]))),
        spread=min(float(np.log(means).std(ddof=1)), 5.0) if len(means) > 1 else 0.0,
    )


def fit_chain(traces: Sequence[BandwidthTrace], step_s: float) -> RateChain:
    """Return the chain whose autocorrelation is nearest to that of the traces.

    All ``WINDOWS`` and ``MEMORIES`` are tried, on a grid of steps of about ``step_s``.
    """
    means = [trace.mean_bytes_per_s for trace in traces]
    if not all(mean > 0 for mean in means):
        raise ValueError("a link must carry something to be fitted, got one that never does")
    grids = [_grid(trace, step_s) / mean for trace, mean in zip(traces, means, strict=True)]
    lags = [lag for lag in LAGS if 2 * lag < max(map(len, grids))]
    target = _covariances(grids, lags)
    # The correlation of a chain fades with the lag, while that of a link with periodic stalls rises
    # again. It cannot be matched there, and the short lags, which decide how long a transfer takes,
    # must not suffer for it.
    weights = 1 / np.array(lags, dtype=np.float64)
    best, least = None, math.inf
    for window in WINDOWS:
        if window > 1 and 2 * window > min(map(len, grids)):
            continue
        chain = _chain(grids, window, float(np.mean(means)))
        for memory in MEMORIES:
            candidate = replace(chain, memory=memory)
            error = float(weights @ (candidate.covariance(lags) - target) ** 2)
            if error < least:
                best, least = candidate, error
            if chain.rates.shape[1] == 1:
                break  # with one rate for each condition, memory changes nothing
    assert best is not None  # the smallest window is one step, which fits every trace
    return best


def _chain(grids: Sequence[FloatArray], window: int, mean_bytes_per_s: float) -> RateChain:
    """Return a chain without memory whose conditions are the outage and levels of the mean rate.

    The level of a step is that of the rate averaged over ``window`` steps around it.
    """
    rates = np.concatenate(grids)
    smooth = np.concatenate([_smoothed(grid, window) for grid in grids])
    is_outage = rates < OUTAGE_SHARE_OF_MEAN
    inner = np.quantile(smooth[~is_outage], np.arange(1, NUM_LEVELS) / NUM_LEVELS)
    labels = np.where(is_outage, 0, 1 + np.searchsorted(np.unique(inner), smooth, side="left"))
    used, labels = np.unique(labels, return_inverse=True)
    moves = np.zeros((len(used), len(used)))
    begin = 0
    for grid in grids:  # each grid counts as a loop, so that every condition has a successor
        own = labels[begin : begin + len(grid)]
        np.add.at(moves, (own, np.roll(own, -1)), 1.0)
        begin += len(grid)
    levels = [np.sort(rates[labels == state]) for state in range(len(used))]
    return RateChain(
        mean_bytes_per_s,
        moves / moves.sum(axis=1, keepdims=True),
        np.array([equally_likely(level, NUM_RATES) for level in levels]),
        0.0,
    )


def _grid(trace: BandwidthTrace, step_s: float) -> FloatArray:
    """Return (n,): the mean rate in each of n equal steps of about ``step_s`` in the loop."""
    edges_s = np.append(trace.time_s, trace.period_s)
    carried = np.concatenate([[0.0], np.cumsum(trace.rate_bytes_per_s * trace.steps.lengths_s)])
    grid_s = np.linspace(0.0, trace.period_s, max(1, round(trace.period_s / step_s)) + 1)
    rates: FloatArray = np.diff(np.interp(grid_s, edges_s, carried)) / np.diff(grid_s)
    # A difference of two equal sums may round to slightly below 0.
    return np.maximum(rates, 0.0)


def _smoothed(grid: FloatArray, window: int) -> FloatArray:
    """Return (n,): the mean over ``window`` steps around each step, across the loop's end."""
    half = window // 2
    total = np.cumsum(np.concatenate([[0.0], grid[len(grid) - half :], grid, grid[:half]]))
    means: FloatArray = (total[window:] - total[:-window]) / window
    return means


def _covariances(grids: Sequence[FloatArray], lags: Sequence[int]) -> FloatArray:
    """Return (len(lags),): the mean over all steps of (rate - 1) (rate a lag later - 1)."""
    num_steps = sum(map(len, grids))
    sums = [sum(float((g - 1) @ (np.roll(g, -lag) - 1)) for g in grids) for lag in lags]
    return np.array(sums) / num_steps
