"""Who takes part: a cohort out of the devices that have nothing to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from devices.plan import DeviceId


class Selection(Protocol):
    """Draws the cohort that a strategy then plans for."""

    def pick(
        self, idle: Sequence[DeviceId], slots: int, rng: np.random.Generator
    ) -> tuple[DeviceId, ...]:
        """At most ``slots`` of the idle devices, each once, in rising order."""
        ...


@dataclass(frozen=True)
class Uniform:
    """Every idle device is as likely as another."""

    kind: ClassVar[str] = "uniform"

    def pick(
        self, idle: Sequence[DeviceId], slots: int, rng: np.random.Generator
    ) -> tuple[DeviceId, ...]:
        """``slots`` devices drawn without replacement, or all of them where there are fewer."""
        # Sorted first, so that the draw depends on who is idle and not on how they are listed.
        drawn = rng.choice(sorted(idle), size=min(slots, len(idle)), replace=False)
        return tuple(sorted(int(device_id) for device_id in drawn))
