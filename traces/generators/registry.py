"""Every generator of links and of availability that a config may name: one line each.

A generator is a frozen value. ``link(rng)`` and ``availability(rng)`` draw one device from the
``np.random.Generator`` they are given and from nothing else, so a device whose generator is seeded
by its own number stays as it is however large the fleet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Protocol

import numpy as np

from traces.availability import AvailabilityTrace
from traces.bandwidth import Link
from traces.generators.diurnal import MIN_SPAN_S
from traces.generators.patterns import pattern_model
from traces.generators.radio import PathLossLink
from traces.generators.synthetic import MarkovLink


class LinkGenerator(Protocol):
    """Draws links."""

    def link(self, rng: np.random.Generator) -> Link:
        """One device's link, which loops."""
        ...


class AvailabilityGenerator(Protocol):
    """Draws when devices are online."""

    def availability(self, rng: np.random.Generator) -> AvailabilityTrace:
        """One device's availability, which loops; instant 0 is midnight."""
        ...


@dataclass(frozen=True)
class Diurnal:
    """Phones by the time of day with many short flaps: ``charging`` or ``charged`` (STUNNER).

    Raises ValueError for an unknown pattern.
    """

    kind: ClassVar[str] = "diurnal"

    pattern: str = "charging"
    num_days: int = 7

    def __post_init__(self) -> None:
        pattern_model(self.pattern, self.num_days)

    def availability(self, rng: np.random.Generator) -> AvailabilityTrace:
        return pattern_model(self.pattern, self.num_days).availability(rng)


@dataclass(frozen=True)
class OnOff:
    """Exponential spans online and offline with these means, at any time of day."""

    kind: ClassVar[str] = "on_off"

    online_s: float
    offline_s: float
    period_s: float = 604800.0

    def __post_init__(self) -> None:
        for name in ("online_s", "offline_s", "period_s"):
            value = getattr(self, name)
            if not 1 <= value < math.inf:
                raise ValueError(f"{name} must be a number of at least 1, got {value:g}")

    def availability(self, rng: np.random.Generator) -> AvailabilityTrace:
        means_s = (self.offline_s, self.online_s)
        # What is left of an exponential span is exponential too, so instant 0 needs no warm-up.
        is_online = int(rng.random() < self.online_s / (self.online_s + self.offline_s))
        at_s, found = 0.0, []
        while at_s < self.period_s:
            end_s = at_s + max(rng.exponential(means_s[is_online]), MIN_SPAN_S)
            if is_online:
                found.append((at_s, min(end_s, self.period_s)))
            at_s, is_online = end_s, 1 - is_online
        return AvailabilityTrace.of(found, self.period_s)


LINKS: Mapping[str, type[LinkGenerator]] = MappingProxyType(
    {"markov": MarkovLink, "path_loss": PathLossLink}
)
AVAILABILITIES: Mapping[str, type[AvailabilityGenerator]] = MappingProxyType(
    {"diurnal": Diurnal, "on_off": OnOff}
)
