"""Defines mixes of device profiles, whose shares are from published figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from traces.arrays import IntArray
from traces.text import unknown


@dataclass(frozen=True)
class Mix:
    """A mix gives the share of each profile in a fleet, and the source of the shares."""

    shares: Mapping[str, float]  # by the name of the profile; only ratios matter
    source: str

    @property
    def profiles(self) -> tuple[str, ...]:
        """Return the names of the profiles, in the order that ``draw`` counts them in."""
        return tuple(self.shares)

    def draw(self, rng: np.random.Generator, size: int) -> IntArray:
        """Return (size,) indices into ``profiles``; a larger size adds draws and changes none."""
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
    """Return the mix of a name. Raises ValueError that lists the names."""
    if name not in MIXES:
        raise ValueError(unknown("a mix", name, MIXES))
    return MIXES[name]
