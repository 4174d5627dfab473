"""Follows the rate of a link, and gives the exact time that a transfer takes on it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from traces.arrays import FloatArray
from traces.steps import StepTrace


@dataclass(frozen=True, eq=False)
class BandwidthTrace:
    """A bandwidth trace gives the rate of one direction of a link in steps, and then repeats.

    The rate is ``rate_bytes_per_s[i]`` on ``[time_s[i], time_s[i + 1])``, and 0 is an outage. The
    fields mean what they mean in ``StepTrace``, which raises ValueError where they contradict it.
    """

    time_s: FloatArray
    rate_bytes_per_s: FloatArray
    period_s: float
    offset_s: float = 0.0

    def __post_init__(self) -> None:
        _ = self.steps

    @cached_property
    def steps(self) -> StepTrace:
        """Return the rates as a step trace, which does the arithmetic."""
        return StepTrace(self.time_s, self.rate_bytes_per_s, self.period_s, self.offset_s)

    @classmethod
    def constant(cls, rate_bytes_per_s: float) -> BandwidthTrace:
        """Return the trace of a rate that never changes."""
        return cls(np.zeros(1), np.array([float(rate_bytes_per_s)]), 1.0)

    @property
    def mean_bytes_per_s(self) -> float:
        """Return the mean rate over one period, in bytes per second."""
        return self.steps.mean

    def rate_at(self, at_s: float) -> float:
        """Return the rate in bytes per second at an instant."""
        return self.steps.at(at_s)

    def carried_bytes(self, at_s: float) -> float:
        """Return the bytes that the link carries from the start of its first loop to ``at_s``."""
        return self.steps.amount(at_s)

    def transfer_s(self, size_bytes: float, start_s: float) -> float:
        """Return the seconds to carry ``size_bytes`` from ``start_s`` on.

        This is the exact integral of the rate; it is ``inf`` where the link never carries them.
        """
        return self.steps.time_to(size_bytes, start_s)

    def begun_at(self, offset_s: float) -> BandwidthTrace:
        """Return the trace for a clock that starts ``offset_s`` further into it."""
        begun, steps = object.__new__(BandwidthTrace), self.steps.begun_at(offset_s)
        begun.__dict__.update(self.__dict__, steps=steps, offset_s=steps.offset_s)
        return begun

    def scaled(self, factor: float) -> BandwidthTrace:
        """Return the trace with ``factor`` times each rate."""
        return replace(self, rate_bytes_per_s=self.rate_bytes_per_s * factor)

    def ended(self) -> BandwidthTrace:
        """Return the trace without repetition: after its period the link is down for ever."""
        steps = self.steps.ended(last=0.0)
        return BandwidthTrace(steps.time_s, steps.values, steps.period_s, steps.offset_s)


@dataclass(frozen=True, eq=False)
class Link:
    """A link is the connection of one device: a trace for each direction."""

    name: str
    downlink: BandwidthTrace
    uplink: BandwidthTrace

    def begun_at(self, offset_s: float) -> Link:
        """Return the link for a clock that starts ``offset_s`` further into it."""
        return Link(self.name, self.downlink.begun_at(offset_s), self.uplink.begun_at(offset_s))

    def ended(self) -> Link:
        """Return the link without repetition: then it is down for ever."""
        return Link(self.name, self.downlink.ended(), self.uplink.ended())
