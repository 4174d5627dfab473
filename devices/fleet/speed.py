"""Draws how much faster or slower than their common profile devices are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, ClassVar, Protocol

import numpy as np
from annotated_types import Ge, Le

from traces.arrays import FloatArray
from traces.options import Options, Positive, check_options


class SpeedDistribution(Protocol):
    """A speed distribution draws factors on the compute speed of a profile."""

    def draw(self, rng: np.random.Generator, size: int) -> FloatArray:
        """Return (size,) factors above 0; a larger size adds draws and changes none."""
        ...


@dataclass(frozen=True)
class LogNormal(Options):
    """This distribution draws log-normal factors with median 1: the profile is the typical device.

    Raises ValueError for a sigma out of range.
    """

    kind: ClassVar[str] = "lognormal"

    sigma: Annotated[float, Ge(0), Le(5)] = 0.5
    """The standard deviation of the factor's logarithm."""

    def draw(self, rng: np.random.Generator, size: int) -> FloatArray:
        factors: FloatArray = np.exp(self.sigma * rng.standard_normal(size))
        return factors


@dataclass(frozen=True)
class Zipf(Options):
    """This distribution makes a device k times slower than its profile, with few very slow ones.

    The probability of k is in proportion to k^-exponent. Client latencies by Zipf's law with
    exponent 1.2 are the setting of Pisces (Jiang et al., SoCC 2022; from memory). The profile is
    the fastest device. Raises ValueError for a number out of range.
    """

    kind: ClassVar[str] = "zipf"

    exponent: Annotated[float, Ge(0), Le(20)] = 1.2
    """The exponent by which slow devices are rare."""
    max_slowdown: Annotated[int, Ge(1), Le(1_000_000)] = 100
    """The greatest k."""

    def draw(self, rng: np.random.Generator, size: int) -> FloatArray:
        slowdowns = np.arange(1, self.max_slowdown + 1, dtype=np.float64)
        below = np.cumsum(slowdowns**-self.exponent)
        drawn = np.searchsorted(below, rng.random(size) * below[-1], side="right")
        factors: FloatArray = 1 / slowdowns[np.minimum(drawn, self.max_slowdown - 1)]
        return factors


@dataclass(frozen=True)
class UniformSpeed:
    """This distribution draws factors uniformly between two. Raises ValueError if out of range."""

    kind: ClassVar[str] = "uniform"

    lowest: Positive
    """The least factor."""
    highest: Positive
    """The greatest factor."""

    def __post_init__(self) -> None:
        check_options(self)
        if self.lowest > self.highest:
            raise ValueError(
                f"lowest must be at most highest, got {self.lowest:g} of {self.highest:g}"
            )

    def draw(self, rng: np.random.Generator, size: int) -> FloatArray:
        return rng.uniform(self.lowest, self.highest, size)


SPEEDS: Mapping[str, type[SpeedDistribution]] = MappingProxyType(
    {"lognormal": LogNormal, "zipf": Zipf, "uniform": UniformSpeed}
)
"""Every distribution of speed that a config may name."""
