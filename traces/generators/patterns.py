"""Builds daily patterns of availability from published statistics of phones.

The statistics are those of STUNNER (Szabó et al., "Stunner: A Smart Phone Trace for Developing
Decentralized Edge Systems", DAIS 2019), as session lists of 776 phones and 4,334 weeks of 2014.
The lengths of sessions are published for all hours together. Which hours have the long ones is our
reconstruction: a span passes faster or slower by the hour, at a pace chosen so that the share of
phones online in each hour of the day is as measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import numpy as np

from traces.arrays import FloatArray
from traces.generators.diurnal import DiurnalModel, equally_likely
from traces.text import unknown
from traces.units import DAY_S, HOUR_S

NUM_LENGTHS = 40
"""Equally likely lengths of spans that begin in one hour."""
LEVELS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
"""Levels of the published quantiles."""


@dataclass(frozen=True)
class DailyPattern:
    """A pattern holds quantiles of span lengths in seconds, and how they depend on the hour.

    ``online_s`` and ``offline_s`` are the quantiles at ``LEVELS``. The longest spans are chosen so
    that the mean length is the published one. ``pace`` holds the coefficients of a Fourier series
    over the day: a constant, then cosine and sine of one, two and three periods a day. It is the
    logarithm of how fast an offline span passes, and of how slowly an online span does.
    """

    online_s: tuple[float, ...]
    longest_online_s: float
    offline_s: tuple[float, ...]
    longest_offline_s: float
    pace: tuple[float, ...]
    spread: float  # as in DiurnalModel; chosen to match the published quartiles of online shares
    source: str

    def model(self, num_days: int) -> DiurnalModel:
        """Return the generator of devices with this pattern, for traces of ``num_days``."""
        log_pace = _log_pace(self.pace)
        online_s = _lengths_s(self.online_s, self.longest_online_s)
        offline_s = _lengths_s(self.offline_s, self.longest_offline_s)
        return DiurnalModel(
            _by_hour(online_s, np.exp(-log_pace)),
            _by_hour(offline_s, np.exp(log_pace)),
            np.ones(24),
            self.spread,
            num_days=num_days,
        )


PATTERNS: Mapping[str, DailyPattern] = MappingProxyType(
    {
        "charging": DailyPattern(
            (0.098, 1.158, 4.238, 40.6, 400.3, 2123.0, 8310.0, 19830.0, 37824.0),
            71607.0,
            (0.113, 0.941, 2.334, 14.82, 62.22, 2932.0, 30498.0, 52789.0, 111353.0),
            209910.0,
            (-0.245, 0.594, 0.165, 0.108, 0.305, 0.015, -0.013),
            0.8,
            "STUNNER, on the charger with a network: 23 % of the time online, 36 % at 4 h, 16 % at "
            "13 h; 7 sessions a day, half of them shorter than 7 minutes",
        ),
        "charged": DailyPattern(
            (0.18, 1.993, 7.782, 57.28, 421.7, 2107.0, 8168.0, 19210.0, 44110.0),
            73907.0,
            (0.187, 1.425, 4.038, 16.52, 47.33, 925.0, 15837.0, 34306.0, 82556.0),
            160627.0,
            (-0.131, 0.295, 0.386, 0.025, -0.009, 0.108, 0.048),
            0.9,
            "STUNNER, on the charger or above 80 % of charge, with a network: 35 % of the time "
            "online, 44 % at 6 h, 27 % at 18 h; 10 sessions a day",
        ),
    }
)


@cache
def pattern_model(name: str, num_days: int) -> DiurnalModel:
    """Return the generator of a named pattern. Raises ValueError that lists the names."""
    if name not in PATTERNS:
        raise ValueError(unknown("pattern", name, PATTERNS))
    return PATTERNS[name].model(num_days)


def _lengths_s(quantiles_s: tuple[float, ...], longest_s: float) -> FloatArray:
    """Return (K,) equally likely lengths, between the quantiles on a logarithmic scale."""
    levels = [0.0, *LEVELS, 1.0]
    # Nothing is published below the first quantile. A third of it serves as the shortest length,
    # which no result depends on.
    logs = np.log([quantiles_s[0] / 3, *quantiles_s, longest_s])
    share = (np.arange(1000 * NUM_LENGTHS) + 0.5) / (1000 * NUM_LENGTHS)
    return equally_likely(np.exp(np.interp(share, levels, logs)), NUM_LENGTHS)


def _log_pace(coefficients: tuple[float, ...]) -> FloatArray:
    """Return (24,): the Fourier series at the middle of each hour."""
    angle = 2 * math.pi * (np.arange(24) + 0.5) / 24
    terms = [f(k * angle) for k in (1, 2, 3) for f in (np.cos, np.sin)]
    series: FloatArray = np.array(coefficients) @ np.stack([np.ones(24), *terms])
    return series


def _by_hour(lengths_s: FloatArray, pace: FloatArray) -> FloatArray:
    """Return (24, K): how long spans of lengths (K,) last that begin in the middle of each hour.

    A span ends when the pace (24,), integrated over its time, has reached its length.
    """
    hours_s = np.arange(25) * HOUR_S
    passed_s = np.concatenate([[0.0], np.cumsum(pace) * HOUR_S])
    begins_s = hours_s[:-1] + HOUR_S / 2
    until_s = np.interp(begins_s, hours_s, passed_s)[:, None] + lengths_s
    days, within_s = np.divmod(until_s, passed_s[-1])
    lasting_s: FloatArray = days * DAY_S + np.interp(within_s, passed_s, hours_s)
    return lasting_s - begins_s[:, None]
