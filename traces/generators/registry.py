"""Lists every generator of links and of availability that a config may name.

A generator is a frozen dataclass of its options. ``link(rng)`` and ``availability(rng)`` draw one
device from the ``np.random.Generator`` that they are given and from nothing else. So a device whose
``rng`` is seeded by its own number is the same in a fleet of any size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, ClassVar, Protocol

import numpy as np
from annotated_types import Ge

from traces.availability import AvailabilityTrace
from traces.bandwidth import Link
from traces.generators.diurnal import MAX_SPANS, MIN_SPAN_S, NumDays
from traces.generators.patterns import pattern_model
from traces.generators.radio import PathLossLink
from traces.generators.synthetic import MarkovLink
from traces.options import FINITE, check_options

Span = Annotated[float, Ge(1), FINITE]
"""A length in seconds, of at least 1 s."""


class LinkGenerator(Protocol):
    """A link generator draws the links of devices."""

    def link(self, rng: np.random.Generator) -> Link:
        """Draw the link of one device, which loops."""
        ...


class AvailabilityGenerator(Protocol):
    """An availability generator draws when devices are online."""

    def availability(self, rng: np.random.Generator) -> AvailabilityTrace:
        """Draw the availability of one device, which loops; instant 0 is midnight."""
        ...


@dataclass(frozen=True)
class Diurnal:
    """This generator draws phones by a daily pattern with many short spans (STUNNER).

    Raises ValueError for an unknown pattern or a number out of range.
    """

    kind: ClassVar[str] = "diurnal"

    pattern: str = "charging"
    """The daily pattern: charging or charged."""
    num_days: NumDays = 7
    """The length of the trace in days, after which it repeats."""

    def __post_init__(self) -> None:
        check_options(self)
        pattern_model(self.pattern, self.num_days)

    def availability(self, rng: np.random.Generator) -> AvailabilityTrace:
        return pattern_model(self.pattern, self.num_days).availability(rng)


@dataclass(frozen=True)
class OnOff:
    """This generator draws exponential online and offline spans with these means.

    Raises ValueError for a number out of range, or where a trace would have too many spans.
    """

    kind: ClassVar[str] = "on_off"

    online_s: Span
    """The mean length of an online span."""
    offline_s: Span
    """The mean length of an offline span."""
    period_s: Span = 604800.0
    """The length of the trace, after which it repeats."""

    def __post_init__(self) -> None:
        check_options(self)
        if self.period_s > MAX_SPANS * (self.online_s + self.offline_s):
            raise ValueError(
                f"period_s must be at most {MAX_SPANS:,} times online_s + offline_s, "
                f"got {self.period_s:g}"
            )

    def availability(self, rng: np.random.Generator) -> AvailabilityTrace:
        means_s = (self.offline_s, self.online_s)
        # The rest of an exponential span is exponential too, so instant 0 needs no warm-up.
        is_online = int(rng.random() < self.online_s / (self.online_s + self.offline_s))
        # Pairs of an online and an offline span: as many as the period has on average, and again.
        num_pairs = 1 + int(self.period_s / (self.online_s + self.offline_s))
        turns_s = np.tile([means_s[is_online], means_s[1 - is_online]], num_pairs)
        edges_s = np.zeros(1)
        while edges_s[-1] < self.period_s:
            lengths_s = np.maximum(rng.exponential(turns_s), MIN_SPAN_S)
            edges_s = np.append(edges_s, np.cumsum(np.append(edges_s[-1], lengths_s))[1:])
        first = 1 - is_online  # from here on, every second edge begins an online span
        start_s, end_s = edges_s[first:-1:2], np.minimum(edges_s[first + 1 :: 2], self.period_s)
        is_within = start_s < self.period_s
        found = zip(start_s[is_within].tolist(), end_s[is_within].tolist(), strict=True)
        return AvailabilityTrace.of(found, self.period_s)


LINKS: Mapping[str, type[LinkGenerator]] = MappingProxyType(
    {"markov": MarkovLink, "path_loss": PathLossLink}
)
"""Generators of links by the kind that a config names."""
AVAILABILITIES: Mapping[str, type[AvailabilityGenerator]] = MappingProxyType(
    {"diurnal": Diurnal, "on_off": OnOff}
)
"""Generators of availability by the kind that a config names."""
