"""Who takes part: a cohort out of the devices that have nothing to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from algorithms.strategy import FleetView
from devices.vocabulary.plan import DeviceId
from traces.arrays import FloatArray, IntArray

NO_WEIGHT = 1e-300
"""Next to nothing, and yet no number overflows when it is divided by this."""


@dataclass(frozen=True, eq=False)
class Roster:
    """What a server knows of its devices when it picks: read-only arrays, (N,) unless said.

    Rows are in the order of ``device_ids``. NaN: not known, as every loss where nothing is trained.
    A loss is known once the update has been merged.
    """

    fleet: FleetView
    device_ids: IntArray  # rising
    num_examples: IntArray
    times_picked: IntArray
    last_round: FloatArray  # in which it was last picked
    loss: FloatArray  # mean over the examples of its last training
    squared_loss: FloatArray  # mean of their squared losses
    trip_s: FloatArray  # last round trip; where that was cut short, at least as long as it lasted
    utility: FloatArray  # (closed rounds,): sum over merged updates of examples x RMS loss
    round: int  # from 1
    deadline_s: float  # of the pacing; may be inf
    rank: int  # of the global adapter

    def rows(self, device_ids: Sequence[DeviceId] | IntArray) -> IntArray:
        """Where these devices stand, in rising order whatever the order they are listed in."""
        return np.searchsorted(self.device_ids, np.sort(np.asarray(device_ids, dtype=np.int64)))

    def named(self, rows: IntArray) -> tuple[DeviceId, ...]:
        """The devices of these rows, in rising order."""
        return tuple(self.device_ids[np.sort(rows)].tolist())


class Selection(Protocol):
    """Draws the cohort that a strategy then plans for. It keeps nothing: the roster remembers."""

    kind: ClassVar[str]

    def pick(
        self,
        idle: Sequence[DeviceId],
        slots: int,
        *,
        roster: Roster,
        rng: np.random.Generator,
    ) -> tuple[DeviceId, ...]:
        """At most ``slots`` of the idle devices, each once, in rising order."""
        ...


@dataclass(frozen=True)
class Uniform:
    """Every idle device is as likely as another."""

    kind: ClassVar[str] = "uniform"

    def pick(
        self,
        idle: Sequence[DeviceId],
        slots: int,
        *,
        roster: Roster,
        rng: np.random.Generator,
    ) -> tuple[DeviceId, ...]:
        """``slots`` devices drawn without replacement, or all of them where there are fewer."""
        # Sorted first, so that the draw depends on who is idle and not on how they are listed.
        drawn = rng.choice(np.sort(idle), size=min(slots, len(idle)), replace=False)
        return tuple(np.sort(drawn).tolist())


def draw_weighted(
    rows: IntArray, weights: FloatArray | IntArray, count: int, *, rng: np.random.Generator
) -> IntArray:
    """``count`` rows without replacement, one after the other, each by its share of what is left.

    In the order drawn. Efraimidis and Spirakis (2006): the least of Exp(1) / weight come first.
    Rows of no weight come last.
    """
    waits = rng.exponential(size=len(rows)) / np.maximum(weights, NO_WEIGHT)
    first = np.argpartition(waits, count - 1)[:count] if 0 < count < len(rows) else slice(None)
    chosen, chosen_waits = rows[first], waits[first]
    return chosen[np.argsort(chosen_waits, kind="stable")][:count]
