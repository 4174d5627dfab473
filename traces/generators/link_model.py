"""Models a link as a Markov chain of conditions, each with several rates, and draws links of it."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from traces.arrays import FloatArray, IntArray
from traces.bandwidth import BandwidthTrace, Link
from traces.generators.stepped import check_num_steps, stepped


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
        """Return (S,): the share of time in each condition in the long run."""
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
