"""Power-of-choice picks, of several random devices, those on which the model does worst.

Cho, Wang, Joshi: "Client Selection in Federated Learning: Convergence Analysis and Power-of-Choice
Selection Strategies", arXiv 2010.01243 (2020).

The variant is rpow-d, which needs no extra message: a device's loss is the one that it reported
when it last took part. Before that it counts as infinite, so that every device is asked in time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Le

from algorithms.selection import Roster, draw_weighted
from devices.vocabulary.plan import DeviceId
from traces.arrays import IntArray
from traces.options import Options

CandidateFactor = Annotated[float, Ge(1), Le(1000)]
"""The number of devices that a selection looks at for each slot."""


@dataclass(frozen=True)
class PowerOfChoice(Options):
    """Power-of-choice picks the largest last losses among d random devices.

    Devices come into the d by their share of the examples.
    """

    kind: ClassVar[str] = "power_of_choice"

    factor: CandidateFactor = 2.0
    """The number of random devices, d over the slots, that are looked at for each slot."""

    def pick(
        self, idle: IntArray, slots: int, *, roster: Roster, rng: np.random.Generator
    ) -> tuple[DeviceId, ...]:
        """Return the devices of the largest losses; of equal ones, that which was drawn first."""
        rows = roster.rows(idle)
        d = min(math.ceil(self.factor * slots), len(rows))
        drawn = draw_weighted(rows, roster.num_examples[rows], d, rng=rng)
        loss = np.nan_to_num(roster.loss[drawn], nan=math.inf)
        return roster.named(drawn[np.argsort(-loss, kind="stable")][:slots])
