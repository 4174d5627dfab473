"""FedCS picks as many devices as are expected back by the deadline.

Nishio, Yonetani: "Client Selection for Federated Learning with Heterogeneous Resources in Mobile
Edge", ICC 2019, arXiv 1804.08333.

The server asks random devices how quick they are, and takes the quickest one after the other while
they make the deadline. In the paper uploads take turns on one shared band; here every device has a
link of its own, so a device makes the deadline or does not, whoever else takes part.

Our reconstruction: how long a device takes. That is its last round trip, and before the first one
what the cost model says of all terms in all blocks at its last measured link rates, the most that
a scheduler may ask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from algorithms.selection import Roster
from algorithms.selections.power_of_choice import CandidateFactor
from algorithms.strategy import make_plan, round_trip_s
from devices.vocabulary.plan import DeviceId, TermGrid
from traces.arrays import FloatArray, IntArray
from traces.options import Options


@dataclass(frozen=True)
class FedCS(Options):
    """FedCS picks the quickest of several random devices, as many as make the pacing's deadline.

    Where none of them makes the deadline, the quickest one is
    picked, since a round with nobody teaches nothing, not even how long devices take (ours). A
    pacing without a deadline gets the quickest.
    """

    kind: ClassVar[str] = "fedcs"

    factor: CandidateFactor = 2.0
    """The number of devices that are asked for each slot."""

    def pick(
        self, idle: IntArray, slots: int, *, roster: Roster, rng: np.random.Generator
    ) -> tuple[DeviceId, ...]:
        """Return the quickest devices, fewer than ``slots`` where fewer make the deadline."""
        rows = roster.rows(idle)
        num_asked = min(math.ceil(self.factor * slots), len(rows))
        asked = rng.choice(rows, size=num_asked, replace=False)
        trips_s = expected_trips_s(roster, asked)
        quickest = np.argsort(trips_s, kind="stable")[:slots]
        in_time = quickest[trips_s[quickest] <= roster.deadline_s]
        return roster.named(asked[in_time if len(in_time) else quickest[:1]])


def expected_trips_s(roster: Roster, rows: IntArray) -> FloatArray:
    """Return (len(rows),): the seconds that a round trip of each device is expected to take."""
    trips_s = roster.trip_s[rows]
    fleet, shape = roster.fleet, roster.fleet.model.grid_shape(roster.rank)
    everything = TermGrid.top_blocks(shape, shape[0])
    for k in np.flatnonzero(np.isnan(trips_s)):
        device_id = int(roster.device_ids[rows[k]])
        trips_s[k] = round_trip_s(fleet, make_plan(fleet, device_id, everything))
    return trips_s
