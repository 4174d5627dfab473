"""Distributions of the speed of devices that share a profile: seeded factors on its rates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Protocol

import numpy as np

from traces.arrays import FloatArray


class SpeedDistribution(Protocol):
    """A speed distribution draws factors on the compute speed of a profile."""

    def draw(self, rng: np.random.Generator, size: int) -> FloatArray:
        """Return (size,) factors above 0; a larger size adds draws and changes none."""
        ...


@dataclass(frozen=True)
class LogNormal:
    """This distribution draws log-normal factors with median 1: the profile is the typical device.

    Raises ValueError for a sigma out of range.
    """

    kind: ClassVar[str] = "lognormal"

    sigma: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.sigma <= 5:
            raise ValueError(f"sigma must be in [0, 5], got {self.sigma:g}")

    def draw(self, rng: np.random.Generator, size: int) -> FloatArray:
        factors: FloatArray = np.exp(self.sigma * rng.standard_normal(size))
        return factors


@dataclass(frozen=True)
class Zipf:
    """This distribution makes a device k times slower than its profile, with few very slow ones.

    The probability of k is in proportion to k^-exponent. Client latencies by Zipf's law with
    exponent 1.2 are the setting of Pisces (Jiang et al., SoCC 2022; from memory). The profile is
    the fastest device. Raises ValueError for a number out of range.
    """

    kind: ClassVar[str] = "zipf"

    exponent: float = 1.2
    max_slowdown: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.exponent <= 20:
            raise ValueError(f"exponent must be in [0, 20], got {self.exponent:g}")
        if not 1 <= self.max_slowdown <= 1_000_000:
            raise ValueError(f"max_slowdown must be in [1, 1000000], got {self.max_slowdown}")

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

    lowest: float
    highest: float

    def __post_init__(self) -> None:
        if not 0 < self.lowest <= self.highest < math.inf:
            raise ValueError(
                f"lowest must be above 0 and at most highest, "
                f"got {self.lowest:g} of {self.highest:g}"
            )

    def draw(self, rng: np.random.Generator, size: int) -> FloatArray:
        return rng.uniform(self.lowest, self.highest, size)


SPEEDS: Mapping[str, type[SpeedDistribution]] = MappingProxyType(
    {"lognormal": LogNormal, "zipf": Zipf, "uniform": UniformSpeed}
)
"""Every distribution of speed that a config may name."""
