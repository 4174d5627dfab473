"""Models a link as a Markov chain of conditions with scattered rates, and fits it to traces."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from traces.arrays import FloatArray, IntArray
from traces.bandwidth import BandwidthTrace, Link
from traces.generators.diurnal import equally_likely
from traces.generators.stepped import check_num_steps, stepped
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


@dataclass(frozen=True, eq=False)
class RateChain:
    """A rate chain draws the rates of one direction of a link, step by step.

    In each step the chain moves to one of S conditions, and the rate is one of the K equally likely
    rates of that condition. ``transition`` is (S, S) with rows that sum to 1; ``rates`` is (S, K),
    multiples of the mean rate in rising order. From one step to the next the position in that order
    is kept with probability ``memory``, else drawn again. Raises ValueError where one of these
    fails.
    """

    mean_bytes_per_s: float
    transition: FloatArray
    rates: FloatArray
    memory: float

    def __post_init__(self) -> None:
        size = len(self.transition)
        if size == 0 or self.transition.shape != (size, size) or len(self.rates) != size:
            raise ValueError(
                f"transition must be square with one row of rates for each of its rows, got "
                f"{self.transition.shape} and {self.rates.shape}"
            )
        if self.rates.ndim != 2 or self.rates.shape[1] == 0:
            raise ValueError("rates must be rows of at least one rate")
        if not (np.isfinite(self.rates).all() and (self.rates >= 0).all() and self.rates.any()):
            raise ValueError("rates must be numbers of at least 0, not all of them 0")
        sums = self.transition.sum(axis=1)
        if not ((self.transition >= 0).all() and np.allclose(sums, 1.0, atol=1e-6)):
            raise ValueError("each row of transition must be probabilities that sum to 1")
        if not 0 <= self.memory < 1:
            raise ValueError(f"memory must be in [0, 1), got {self.memory:g}")
        if not 0 < self.mean_bytes_per_s < math.inf:
            raise ValueError(f"the mean must be a rate above 0, got {self.mean_bytes_per_s:g}")

    @property
    def shares(self) -> FloatArray:
        """(S,): the share of the time in each condition in the long run."""
        size = len(self.transition)
        equations = np.vstack([self.transition.T - np.eye(size), np.ones(size)])
        shares: FloatArray = np.linalg.lstsq(equations, np.append(np.zeros(size), 1.0), rcond=None)[
            0
        ]
        return np.clip(shares, 0.0, 1.0)

    def draw(self, moves: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Return (n,) multiples of the mean rate, for uniform random numbers ``moves`` (n,).

        ``moves`` decide how the chain moves, and ``rng`` which rate of a condition is drawn.
        """
        states = self._states(moves)
        num_steps, num_rates = len(moves), self.rates.shape[1]
        is_new = rng.random(num_steps) >= self.memory
        is_new[0] = True
        since = np.maximum.accumulate(np.where(is_new, np.arange(num_steps), 0))
        place = (rng.random(num_steps)[since] * num_rates).astype(np.int64)
        drawn: FloatArray = self.rates[states, place]
        return drawn

    def _states(self, moves: FloatArray) -> IntArray:
        below = [np.cumsum(row).tolist() for row in self.transition]
        last = len(below) - 1
        state = min(bisect.bisect(np.cumsum(self.shares).tolist(), float(moves[0])), last)
        states = [state]
        for move in moves[1:].tolist():
            state = min(bisect.bisect(below[state], move), last)
            states.append(state)
        return np.array(states, dtype=np.int64)

    def covariance(self, lags: Sequence[int]) -> FloatArray:
        """Return (len(lags),): the covariance of the multiples with themselves, lags in steps.

        With shares p, transition P and rates q: sum_ij p_i P^k_ij (m^k E[q_i q_j] + (1 - m^k)
        E[q_i] E[q_j]) less the square of the mean.
        """
        shares, means = self.shares, self.rates.mean(axis=1)
        same = self.rates @ self.rates.T / self.rates.shape[1]
        other = np.outer(means, means)
        values = []
        for lag in lags:
            kept = self.memory**lag
            pairs = shares[:, None] * np.linalg.matrix_power(self.transition, lag)
            values.append((pairs * (kept * same + (1 - kept) * other)).sum())
        covariances: FloatArray = np.array(values) - float(shares @ means) ** 2
        return covariances


@dataclass(frozen=True, eq=False)
class LinkModel:
    """A link model draws links whose directions follow rate chains.

    Both chains of a link move by the same random numbers, so that conditions change together.
    ``spread`` is the log-normal spread of the mean rate between links. Where ``uplink`` is None it
    was not measured, and is ``uplink_scale`` times the downlink. Raises ValueError for a number out
    of range.
    """

    name: str
    downlink: RateChain
    uplink: RateChain | None
    step_s: float
    duration_s: float
    spread: float = 0.0
    uplink_scale: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.step_s <= self.duration_s < math.inf:
            raise ValueError(
                f"step_s must be above 0 and at most duration_s, "
                f"got {self.step_s:g} of {self.duration_s:g}"
            )
        check_num_steps(self.duration_s, self.step_s)
        if not 0 <= self.spread <= 5:
            raise ValueError(f"spread must be in [0, 5], got {self.spread:g}")

    def link(self, rng: np.random.Generator) -> Link:
        """Draw one link, which loops. Raises ValueError where the uplink is not known."""
        num_steps = max(1, round(self.duration_s / self.step_s))
        level = math.exp(self.spread * rng.standard_normal() - self.spread**2 / 2)
        moves = rng.random(num_steps)
        down = self._trace(self.downlink, level * self.downlink.draw(moves, rng))
        if self.uplink is not None:
            up = self._trace(self.uplink, level * self.uplink.draw(moves, rng))
        elif self.uplink_scale is not None:
            up = down.scaled(self.uplink_scale)
        else:
            raise ValueError(f"the uplink of {self.name} was not measured; give uplink_scale")
        return Link(self.name, down, up)

    def _trace(self, chain: RateChain, multiples: FloatArray) -> BandwidthTrace:
        return stepped(chain.mean_bytes_per_s * multiples, self.step_s)


def fit_link(
    name: str, downlinks: Sequence[BandwidthTrace], uplinks: Sequence[BandwidthTrace]
) -> LinkModel:
    """Return the model fitted to these links; ``uplinks`` is empty where none was measured.

    Each link is fitted as a multiple of its own mean, and ``spread`` says how the means differ.
    Raises ValueError without a link, and for a link that never carries anything.
    """
    if not downlinks:
        raise ValueError("a fit needs at least one link, got none")
    lengths_s = np.concatenate([_lengths_s(trace) for trace in downlinks])
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
                break  # nothing to remember
    assert best is not None  # a window of one step always fits
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
    for grid in grids:  # each grid loops, so that every condition is left again
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
    carried = np.concatenate([[0.0], np.cumsum(trace.rate_bytes_per_s * np.diff(edges_s))])
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


def _lengths_s(trace: BandwidthTrace) -> FloatArray:
    return np.diff(np.append(trace.time_s, trace.period_s))
