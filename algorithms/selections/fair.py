"""Fair keeps rounds short, as long as every device gets its share of them.

After Huang, Lin, Wu, He, Li, Zomaya: "An Efficiency-Boosting Client Selection Scheme for Federated
Learning With Fairness Guarantee" (RBCS-F), IEEE Trans. Parallel and Distributed Systems, 2021,
arXiv 2011.01783.

From the paper: a cohort is worth the sum of what its devices are owed, less a weight times the
seconds of its slowest device (drift plus penalty). Our reconstruction: a device is owed the
participations by which it falls short of its guaranteed share, where the paper runs a queue; its
seconds are those of its last round trip, where the paper learns them by a bandit; a device that was
never seen counts as the quickest there may be, as a bandit's optimism would have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heapreplace
from typing import ClassVar

import numpy as np

from algorithms.selection import Roster
from devices.vocabulary.plan import DeviceId
from traces.arrays import FloatArray, IntArray
from traces.options import NotNegative, Options, Share


@dataclass(frozen=True)
class Fair(Options):
    """Fair picks the quickest cohort that leaves no device behind its guaranteed share of rounds.

    With ``guaranteed_share`` 1 and ``time_weight`` 0 the devices that took part least come first.
    """

    kind: ClassVar[str] = "fair"

    guaranteed_share: Share = 0.5
    """The share of the mean number of participations that each device is owed."""
    time_weight: NotNegative = 1.0
    """The owed participations that a round longer by the median round trip must bring."""

    def pick(
        self, idle: IntArray, slots: int, *, roster: Roster, rng: np.random.Generator
    ) -> tuple[DeviceId, ...]:
        """Return the best cohort of its size; of several best ones, one is drawn."""
        rows = rng.permutation(roster.rows(idle))
        if not 0 < slots < len(rows):
            return roster.named(rows[:slots])
        trip_s = np.nan_to_num(roster.trip_s, nan=0.0)
        seen_s = trip_s[trip_s > 0]
        rows = rows[np.argsort(trip_s[rows], kind="stable")]
        picked = roster.times_picked
        owed = np.maximum(self.guaranteed_share * picked.mean() - picked[rows], 0.0)
        price = self.time_weight * trip_s[rows] / (np.median(seen_s) if len(seen_s) else 1.0)
        within = _best_prefix(owed, price, slots)
        return roster.named(rows[np.argsort(-owed[:within], kind="stable")[:slots]])


def _best_prefix(owed: FloatArray, price: FloatArray, slots: int) -> int:
    """Return how many of the quickest devices to take the ``slots`` most owed ones from.

    Exact: whoever is the slowest of the cohort, the others are the most owed of the quicker ones.
    Only a device that is owed more than one of the cohort so far can better it, and such are few:
    they are looked for in chunks that double.
    """
    cohort = owed[:slots].tolist()
    heapify(cohort)
    total = sum(cohort)
    best, within = total - price[slots - 1], slots
    begin = slots
    while begin < len(owed):
        end = min(2 * begin, len(owed))
        for k in begin + np.flatnonzero(owed[begin:end] > cohort[0]):
            if owed[k] > cohort[0]:
                total += owed[k] - heapreplace(cohort, owed[k])
                if total - price[k] > best:
                    best, within = total - price[k], int(k) + 1
        begin = end
    return within
