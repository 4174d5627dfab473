"""Selects who takes part: a cohort out of the devices that have nothing to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from algorithms.strategy import FleetView
from devices.vocabulary.plan import DeviceId
from traces.arrays import BoolArray, FloatArray, IntArray

MAX_TRIES = 32
"""The number of devices that are drawn one by one before all idle ones are ranked."""
NO_WEIGHT = 1e-300
"""The weight of a device without weight: above 0, and no weight overflows when divided by it."""


@dataclass(frozen=True, eq=False)
class Roster:
    """A roster is what a server knows of its devices when it picks: (N,) arrays unless said.

    Rows are in the order of ``device_ids``. NaN: not known, as every loss where nothing is trained.
    A loss is known once the update has been merged.
    """

    fleet: FleetView
    device_ids: IntArray  # rising
    num_examples: IntArray
    times_picked: IntArray
    last_round: FloatArray  # the round in which it was last picked
    loss: FloatArray  # mean over the examples of its last training
    squared_loss: FloatArray  # mean of their squared losses
    trip_s: FloatArray  # last round trip; where that was cut short, at least as long as it lasted
    utility: FloatArray  # (closed rounds,): sum over merged updates of examples x RMS loss
    round: int  # from 1
    deadline_s: float  # of the pacing; may be inf
    rank: int  # of the global adapter

    def rows(self, device_ids: IntArray) -> IntArray:
        """Return the rows of these devices, which must rise; the rows rise too."""
        # Most fleets are numbered without gaps, so that an id is a row. This saves the search,
        # which takes 0.1 s for a million devices.
        if len(device_ids) == 0 or self.device_ids[-1] == len(self.device_ids) - 1:
            return device_ids
        return np.searchsorted(self.device_ids, device_ids)

    def named(self, rows: IntArray) -> tuple[DeviceId, ...]:
        """Return the devices of these rows, in rising order."""
        return tuple(self.device_ids[np.sort(rows)].tolist())


class Selection(Protocol):
    """A selection draws the cohort that a strategy then plans for.

    A selection keeps nothing from one call to the next: what is remembered stands in the roster.
    """

    kind: ClassVar[str]

    def pick(
        self, idle: IntArray, slots: int, *, roster: Roster, rng: np.random.Generator
    ) -> Sequence[DeviceId]:
        """Return at most ``slots`` of the idle devices, each at most once, in any order.

        The server guarantees that ``idle`` (n,) holds at least one device and rises, that
        ``slots`` is at least 1, and that ``rng`` depends on the seed and on how often devices were
        asked before, never on the strategy. It raises InvariantError for a device that is not
        idle, is named twice or is one too many, and sorts the cohort.
        """
        ...


@dataclass(frozen=True)
class Uniform:
    """Uniform picks every idle device as likely as another.

    All devices of the fleet are ranked at random, and the first idle ones are picked. So a device
    that is missing changes a cohort by itself and the one that comes in its place, and the same
    cohorts are drawn under every strategy as far as the same devices are there. For a single slot
    devices are drawn one after the other until one is idle, which has the same two properties and
    takes no longer in a larger fleet.
    """

    kind: ClassVar[str] = "uniform"

    def pick(
        self, idle: IntArray, slots: int, *, roster: Roster, rng: np.random.Generator
    ) -> tuple[DeviceId, ...]:
        """Return ``slots`` devices, or all of them where there are fewer."""
        count, rows = len(roster.device_ids), roster.rows(idle)
        if slots == 1 and len(rows):
            is_idle = np.zeros(count, dtype=np.bool_)
            is_idle[rows] = True
            return roster.named(np.array([self.pick_one(is_idle, rng)]))
        keys = _keys(count, rng)
        if 0 < slots < len(rows):
            rows = rows[np.argpartition(keys[rows], slots - 1)]
        return roster.named(rows[:slots])

    def pick_one(self, is_idle: BoolArray, rng: np.random.Generator) -> int:
        """Return the row that ``pick`` would for a single slot, where at least one row is idle.

        ``is_idle`` is (N,) over the fleet. No draw depends on who is idle, and each row is drawn
        with a probability of 1/N, to within 2^-64.
        """
        draw, count = rng.bit_generator.random_raw, len(is_idle)
        for _ in range(MAX_TRIES):
            row: int = draw() * count >> 64
            if is_idle.item(row):
                return row
        rows = is_idle.nonzero()[0]
        return int(rows[_keys(count, rng)[rows].argmin()])


def _keys(count: int, rng: np.random.Generator) -> npt.NDArray[np.uint64]:
    """Return (count,) random keys, one for each device of a fleet, idle or not.

    So no key depends on who is idle. They rank devices as ``rng.random(count)`` does, whose numbers
    are the first 53 bits of these, in four fifths of its time: 2 ms for a million devices.
    """
    return rng.bit_generator.random_raw(count)


def draw_weighted(
    rows: IntArray, weights: FloatArray | IntArray, count: int, *, rng: np.random.Generator
) -> IntArray:
    """Return ``count`` rows drawn one after the other, each by its share of the weight left.

    In the order drawn. Efraimidis and Spirakis (2006): the least of Exp(1) / weight come first.
    Rows of no weight come last.
    """
    waits = rng.exponential(size=len(rows)) / np.maximum(weights, NO_WEIGHT)
    first = np.argpartition(waits, count - 1)[:count] if 0 < count < len(rows) else slice(None)
    chosen, chosen_waits = rows[first], waits[first]
    return chosen[np.argsort(chosen_waits, kind="stable")][:count]
