"""Keeps what the server knows of each device's participation, for the selection."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from algorithms.selection import Roster
from algorithms.strategy import FleetView
from devices.fleet.fleet import Fleet
from devices.vocabulary.plan import ClientUpdate, DeviceId
from simulator.log.records import Ended
from traces.arrays import FloatArray, IntArray

MOST = sys.float_info.max
"""The value that an infinite squared loss counts as."""
Scalar = TypeVar("Scalar", bound=np.generic)


class Participation:
    """Participation holds losses, round trips and turns of all devices, in arrays over the fleet.

    A device's id is its row. An update touches its devices alone, and a roster copies nothing.
    """

    def __init__(self, fleet: Fleet, view: FleetView) -> None:
        self._view = view
        self._device_ids = np.array(view.device_ids, dtype=np.int64)
        self._num_examples = fleet.num_examples  # does not make the devices of a large fleet
        count = len(self._device_ids)
        self._times_picked = np.zeros(count, dtype=np.int64)
        self._last_round, self._loss, self._squared_loss, self._trip_s = np.full((4, count), np.nan)
        self._utility = np.empty(64)  # utilities of the closed rounds, with room for more
        self._num_closed = 0
        self._roster: Roster | None = None  # the last roster, if it is still valid
        self._known: dict[str, npt.NDArray[Any]] = {
            "device_ids": _read_only(self._device_ids),
            "num_examples": _read_only(self._num_examples),
            "times_picked": _read_only(self._times_picked),
            "last_round": _read_only(self._last_round),
            "loss": _read_only(self._loss),
            "squared_loss": _read_only(self._squared_loss),
            "trip_s": _read_only(self._trip_s),
        }

    def roster(self, round_number: int, *, deadline_s: float, rank: int) -> Roster:
        """Return a read-only view of what is known now, valid until the next change."""
        known = self._roster
        if known and (known.round, known.deadline_s, known.rank) == (
            round_number,
            deadline_s,
            rank,
        ):
            return known
        self._roster = Roster(
            fleet=self._view,
            **self._known,
            utility=_read_only(self._utility[: self._num_closed]),
            round=round_number,
            deadline_s=deadline_s,
            rank=rank,
        )
        return self._roster

    def picked(self, cohort: Sequence[DeviceId], round_number: int) -> None:
        """Count a cohort as picked, including devices that sit out: they have had their turn."""
        # NumPy indexes by a single number much faster than by an array of one.
        rows = cohort[0] if len(cohort) == 1 else np.array(cohort, dtype=np.int64)
        self._times_picked[rows] += 1
        self._last_round[rows] = round_number

    def ended(self, record: Ended) -> None:
        """Note the seconds that a device took for its update, or those until it was cut."""
        row = record.device_id
        taken_s = record.finished_s - record.started_s
        if record.outcome == "aggregated":
            self._trip_s[row] = taken_s
        elif record.outcome == "late":
            self._trip_s[row] = np.fmax(self._trip_s[row], taken_s)

    def all_ended(self, device_ids: IntArray, taken_s: FloatArray) -> None:
        """Note the seconds of many devices, all of which brought their updates."""
        self._trip_s[device_ids] = taken_s

    def all_late(self, device_ids: IntArray, taken_s: float) -> None:
        """Note that many devices were cut after these seconds."""
        self._trip_s[device_ids] = np.fmax(self._trip_s[device_ids], taken_s)

    def closed(self, updates: Sequence[ClientUpdate]) -> None:
        """Note the losses that the merged updates of a round report."""
        utilities = []
        for update in updates:
            row, squared = update.plan.device_id, update.squared_loss
            self._loss[row], self._squared_loss[row] = update.train_loss, squared
            if not math.isnan(squared):
                utilities.append(self._num_examples[row] * math.sqrt(min(squared, MOST)))
        if self._num_closed == len(self._utility):
            self._utility = np.concatenate([self._utility, np.empty_like(self._utility)])
        self._utility[self._num_closed] = math.fsum(utilities)
        self._num_closed += 1
        self._roster = None


def _read_only(values: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    view = values.view()
    view.flags.writeable = False
    return view
