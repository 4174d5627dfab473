"""Draws availability that follows the time of day: seeded online and offline spans.

A device alternates between the two states. The length of each span is drawn from equally likely
lengths for the part of the day in which it begins. So the daily profile, the distribution of the
spans and the share of time online all follow from two tables (a semi-Markov process driven by the
time of day).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le

from traces.arrays import FloatArray
from traces.availability import AvailabilityTrace
from traces.options import check_options
from traces.units import DAY_S

WARM_UP_DAYS = 4
"""Days drawn before instant 0, so that the state in which a draw begins no longer matters then."""
MIN_SPAN_S = 1e-3
MAX_SPANS = 1_000_000
"""The largest expected number of online spans of a device in a trace."""

NumDays = Annotated[int, Ge(1), Le(3660)]
"""The length of a drawn trace in days."""


@dataclass(frozen=True, eq=False)
class DiurnalModel:
    """A diurnal model draws the availability of devices; instant 0 is midnight.

    ``online_s`` and ``offline_s`` are (B, K), above 0: row b holds K equally likely lengths of
    spans that begin in the b-th of B equal parts of the day. ``begins`` (B,) says how often an
    online span begins in each part; only ratios matter. ``spread`` is the standard deviation
    between devices of the log-odds of being online: a device's factor on its online spans is the
    inverse of that on its offline spans. ``never`` and ``always`` are the shares of devices that
    are offline or online throughout. A drawn trace lasts ``num_days`` and then repeats. Raises
    ValueError where one of these fails, or where a trace would have too many spans.
    """

    online_s: FloatArray
    offline_s: FloatArray
    begins: FloatArray
    spread: Annotated[float, Ge(0), Le(10)] = 0.0
    never: float = 0.0
    always: float = 0.0
    num_days: NumDays = 7

    def __post_init__(self) -> None:
        check_options(self)
        for name, lengths_s in (("online_s", self.online_s), ("offline_s", self.offline_s)):
            if lengths_s.ndim != 2 or lengths_s.size == 0:
                raise ValueError(
                    f"{name} must be rows of lengths for parts of the day, got {lengths_s.shape}"
                )
            if not (np.isfinite(lengths_s).all() and (lengths_s >= MIN_SPAN_S).all()):
                raise ValueError(
                    f"{name} must be numbers of at least {MIN_SPAN_S:g} s, got {lengths_s.min():g}"
                )
        if self.begins.shape != self.online_s.shape[:1] or not (
            np.isfinite(self.begins).all() and (self.begins >= 0).all() and self.begins.any()
        ):
            raise ValueError(
                f"begins must be {len(self.online_s)} numbers of at least 0, one for each part of "
                f"the day in online_s, not all of them 0"
            )
        if not (self.never >= 0 and self.always >= 0 and self.never + self.always <= 1):
            raise ValueError(
                f"never and always must be shares of devices that sum to at most 1, "
                f"got {self.never:g} and {self.always:g}"
            )
        # A device's factor divides one mean and multiplies the other, so their sum is at least
        # 2 sqrt(online offline) for every device.
        means_s = self.online_s.mean(axis=1).min(), self.offline_s.mean(axis=1).min()
        if self.num_days * DAY_S > MAX_SPANS * 2 * math.sqrt(means_s[0] * means_s[1]):
            raise ValueError(
                f"a trace must have at most {MAX_SPANS:,} online spans, got mean lengths down to "
                f"{means_s[0]:g} s online and {means_s[1]:g} s offline over {self.num_days} days"
            )

    def availability(self, rng: np.random.Generator) -> AvailabilityTrace:
        """Draw the trace of one device from ``rng`` and nothing else."""
        period_s = self.num_days * DAY_S
        kind = rng.random()
        tilt = math.exp(self.spread * rng.standard_normal() / 2)
        if kind < self.never:
            return AvailabilityTrace.of([], period_s)
        if kind >= 1 - self.always:
            return AvailabilityTrace.of([(0.0, period_s)], period_s)
        return AvailabilityTrace.of(self._spans(rng, tilt), period_s)

    def _spans(self, rng: np.random.Generator, tilt: float) -> list[tuple[float, float]]:
        """Return the online spans in [0, period), drawn from well before instant 0 on.

        ``tilt`` multiplies the online spans and divides the offline ones.
        """
        tables = [(self.offline_s / tilt).tolist(), (self.online_s * tilt).tolist()]
        period_s = self.num_days * DAY_S
        below = np.cumsum(self.begins)
        part = int(np.searchsorted(below, rng.random() * below[-1], side="right"))
        at_s = (min(part, len(below) - 1) + rng.random()) / len(below) * DAY_S
        at_s, is_online = at_s - WARM_UP_DAYS * DAY_S, 1
        found: list[tuple[float, float]] = []
        while at_s < period_s:
            rows = tables[is_online]
            # An instant just before midnight may be rounded to the end of the day.
            row = rows[min(int(at_s % DAY_S / DAY_S * len(rows)), len(rows) - 1)]
            end_s = at_s + max(row[int(rng.random() * len(row))], MIN_SPAN_S)
            if is_online and end_s > 0:
                found.append((max(at_s, 0.0), min(end_s, period_s)))
            at_s, is_online = end_s, 1 - is_online
        return found


def equally_likely(sorted_values: FloatArray, num_values: int) -> FloatArray:
    """Return (num_values,): the means of equal shares of sorted values (n,), with the same mean."""
    below = np.concatenate([[0.0], np.cumsum(sorted_values)])
    edges = np.linspace(0.0, len(sorted_values), num_values + 1)
    sums = np.diff(np.interp(edges, np.arange(len(below)), below))
    shares: FloatArray = sums * num_values / len(sorted_values)
    return shares
