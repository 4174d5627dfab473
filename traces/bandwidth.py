"""Link rate over time, and the exact time a transfer takes on it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BandwidthTrace:
    """Link rate, constant on ``[time_s[i], time_s[i + 1])``; it repeats every ``period_s``.

    ``time_s`` is (n,), starts at 0 and increases; ``rate_bytes_per_s`` is (n,), >= 0, and 0 is an
    outage; ``period_s`` is where the last rate ends. Raises ValueError where one of these fails.
    """

    time_s: FloatArray
    rate_bytes_per_s: FloatArray
    period_s: float

    def __post_init__(self) -> None:
        time_s, rate = self.time_s, self.rate_bytes_per_s
        if len(time_s) == 0 or time_s.shape != rate.shape:
            raise ValueError(
                f"a trace needs as many rates as times and at least one of each, "
                f"got {len(time_s)} times and {len(rate)} rates"
            )
        edges = np.append(time_s, self.period_s)
        if not (np.isfinite(edges).all() and np.isfinite(rate).all()):
            raise ValueError("times, rates and the period must be finite numbers")
        if time_s[0] != 0:
            raise ValueError(f"the first time must be 0, got {time_s[0]:g}")
        if (np.diff(edges) <= 0).any():
            at = int(np.argmax(np.diff(edges) <= 0))
            raise ValueError(f"times must increase, got {edges[at + 1]:g} after {edges[at]:g}")
        if (rate < 0).any():
            raise ValueError(f"rates must be >= 0, got {rate[rate < 0][0]:g}")

    @classmethod
    def constant(cls, rate_bytes_per_s: float) -> BandwidthTrace:
        """A link that never changes."""
        return cls(np.zeros(1), np.array([float(rate_bytes_per_s)]), 1.0)

    @cached_property
    def _edges_s(self) -> FloatArray:
        return np.append(self.time_s, self.period_s)

    @cached_property
    def _carried_bytes(self) -> FloatArray:
        """(n + 1,): bytes carried from 0 to each edge of the first period."""
        return np.concatenate([[0.0], np.cumsum(self.rate_bytes_per_s * np.diff(self._edges_s))])

    @property
    def mean_bytes_per_s(self) -> float:
        """Average rate over one period."""
        return float(self._carried_bytes[-1] / self.period_s)

    def rate_at(self, at_s: float) -> float:
        """Rate in bytes/s at an instant."""
        index = np.searchsorted(self.time_s, at_s % self.period_s, side="right") - 1
        return float(self.rate_bytes_per_s[index])

    def carried_bytes(self, at_s: float) -> float:
        """Bytes that the link carries from instant 0 to ``at_s``."""
        loops, within_s = divmod(at_s, self.period_s)
        return float(
            loops * self._carried_bytes[-1]
            + np.interp(within_s, self._edges_s, self._carried_bytes)
        )

    def transfer_s(self, size_bytes: float, start_s: float) -> float:
        """Seconds to carry ``size_bytes`` from ``start_s``; ``inf`` on a link that is always down.

        The exact integral of the rate: two binary searches, whatever the number of loops.
        """
        if size_bytes <= 0:
            return 0.0
        per_loop = float(self._carried_bytes[-1])
        if per_loop == 0:
            return math.inf
        within_s = start_s % self.period_s
        # Counted from the start of the loop in which the transfer begins, so that precision does
        # not fade as the clock grows.
        target = float(np.interp(within_s, self._edges_s, self._carried_bytes)) + size_bytes
        filled = target / per_loop
        if math.isinf(filled):  # so slow that no float holds the time
            return math.inf
        loops = math.floor(filled)
        rest = target - loops * per_loop
        if rest <= 0:  # what ends on a loop's edge ends with the loop before, ahead of any outage
            loops, rest = loops - 1, per_loop
        # side="left": during an outage the bytes were complete when the outage began.
        edge = int(np.searchsorted(self._carried_bytes, min(rest, per_loop), side="left"))
        missing = float(self._carried_bytes[edge]) - rest
        end_s = float(self._edges_s[edge])
        if missing > 0:
            end_s -= missing / float(self.rate_bytes_per_s[edge - 1])
        return max(loops * self.period_s + end_s - within_s, 0.0)

    def scaled(self, factor: float) -> BandwidthTrace:
        """The same shape at ``factor`` times the rate."""
        return replace(self, rate_bytes_per_s=self.rate_bytes_per_s * factor)

    def shifted(self, offset_s: float) -> BandwidthTrace:
        """The same loop, begun ``offset_s`` into it."""
        offset_s %= self.period_s
        if offset_s == 0:
            return self
        first = int(np.searchsorted(self.time_s, offset_s, side="right")) - 1
        time_s = np.concatenate(
            [
                [0.0],
                self.time_s[first + 1 :] - offset_s,
                self.time_s[: first + 1] + self.period_s - offset_s,
            ]
        )
        rate = np.concatenate([self.rate_bytes_per_s[first:], self.rate_bytes_per_s[: first + 1]])
        keep = np.append(np.diff(time_s) > 0, time_s[-1] < self.period_s)
        return BandwidthTrace(time_s[keep], rate[keep], self.period_s)


@dataclass(frozen=True, eq=False)
class Link:
    """One device's connection: a trace each way."""

    name: str
    downlink: BandwidthTrace
    uplink: BandwidthTrace
