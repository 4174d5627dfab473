"""Fleets by shares: which profiles there are, and how many of each, from published figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from traces.arrays import IntArray


@dataclass(frozen=True)
class Mix:
    """Shares of profiles of the catalog; ``source`` says whose."""

    shares: Mapping[str, float]  # profile -> share; only ratios matter
    source: str

    @property
    def profiles(self) -> tuple[str, ...]:
        """Names, in the order that ``draw`` counts them in."""
        return tuple(self.shares)

    def draw(self, rng: np.random.Generator, size: int) -> IntArray:
        """(size,): indices into ``profiles``. The first of more draws are those of fewer."""
        below = np.cumsum(list(self.shares.values()))
        drawn = np.searchsorted(below, rng.random(size) * below[-1], side="right")
        indices: IntArray = np.minimum(drawn, len(below) - 1)
        return indices


MIXES: Mapping[str, Mix] = MappingProxyType(
    {
        "jetson-testbed": Mix(
            {"jetson-tx2-maxn": 30, "jetson-xavier-nx-20w": 40, "jetson-agx-xavier-maxn": 10},
            "the 80 Jetson boards of LEGEND, FedSpine and HierFedLoRA; their split into 30 TX2, 40 "
            "Xavier NX and 10 AGX Xavier is from memory, and the power modes are our choice",
        ),
        "phones-2023": Mix(
            {
                "phone-snapdragon-665": 0.19,
                "phone-exynos-850": 0.19,
                "phone-snapdragon-730": 0.19,
                "phone-snapdragon-778g": 0.19,
                "phone-snapdragon-855": 0.08,
                "phone-snapdragon-888": 0.08,
                "phone-snapdragon-8-gen-2": 0.08,
            },
            "24 % of the phones sold in 2023 cost 600 dollars or more (Counterpoint Research): the "
            "three of the upper tier alike; the rest in equal parts is our reconstruction",
        ),
    }
)
"""Every mix that a config may name."""


def mix(name: str) -> Mix:
    """One mix. Raises ValueError that lists the names."""
    if name not in MIXES:
        raise ValueError(f"a mix must be one of {', '.join(MIXES)}, got {name!r}")
    return MIXES[name]
