"""Link rate over time, and the exact time a transfer takes on it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from traces.arrays import FloatArray
from traces.steps import StepTrace

__all__ = ["BandwidthTrace", "FloatArray", "Link"]


@dataclass(frozen=True, eq=False)
class BandwidthTrace:
    """Link rate, constant on ``[time_s[i], time_s[i + 1])``; it repeats every ``period_s``.

    The steps are those of a ``StepTrace``, whose terms hold: ``rate_bytes_per_s`` is (n,), >= 0,
    and 0 is an outage. Raises ValueError where one of them fails.
    """

    time_s: FloatArray
    rate_bytes_per_s: FloatArray
    period_s: float
    offset_s: float = 0.0

    def __post_init__(self) -> None:
        _ = self.steps

    @cached_property
    def steps(self) -> StepTrace:
        """The same as steps of a quantity."""
        return StepTrace(self.time_s, self.rate_bytes_per_s, self.period_s, self.offset_s)

    @classmethod
    def constant(cls, rate_bytes_per_s: float) -> BandwidthTrace:
        """A link that never changes."""
        return cls(np.zeros(1), np.array([float(rate_bytes_per_s)]), 1.0)

    @property
    def mean_bytes_per_s(self) -> float:
        """Average rate over one period."""
        return self.steps.mean

    def rate_at(self, at_s: float) -> float:
        """Rate in bytes/s at an instant."""
        return self.steps.at(at_s)

    def carried_bytes(self, at_s: float) -> float:
        """Bytes that the link carries from the start of its first loop to ``at_s``."""
        return self.steps.amount(at_s)

    def transfer_s(self, size_bytes: float, start_s: float) -> float:
        """Seconds to carry ``size_bytes`` from ``start_s``; ``inf`` on a link that is always down.

        The exact integral of the rate: two binary searches, whatever the number of loops.
        """
        return self.steps.time_to(size_bytes, start_s)

    def begun_at(self, offset_s: float) -> BandwidthTrace:
        """The same trace, for a clock that starts ``offset_s`` further into it."""
        begun = copy.copy(self)
        steps = self.steps.begun_at(offset_s)
        begun.__dict__.update(steps=steps, offset_s=steps.offset_s)
        return begun

    def scaled(self, factor: float) -> BandwidthTrace:
        """The same shape at ``factor`` times the rate."""
        return replace(self, rate_bytes_per_s=self.rate_bytes_per_s * factor)

    def ended(self) -> BandwidthTrace:
        """The trace played once: then the link is down for ever."""
        steps = self.steps.ended(last=0.0)
        return BandwidthTrace(steps.time_s, steps.values, steps.period_s, steps.offset_s)


@dataclass(frozen=True, eq=False)
class Link:
    """One device's connection: a trace each way."""

    name: str
    downlink: BandwidthTrace
    uplink: BandwidthTrace

    def begun_at(self, offset_s: float) -> Link:
        """The same link, for a clock that starts ``offset_s`` further into it."""
        return Link(self.name, self.downlink.begun_at(offset_s), self.uplink.begun_at(offset_s))

    def ended(self) -> Link:
        """The link played once: then it is down for ever."""
        return Link(self.name, self.downlink.ended(), self.uplink.ended())
