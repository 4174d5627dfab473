"""Power-of-choice: of several random devices, those on which the model does worst.

Cho, Wang, Joshi: "Client Selection in Federated Learning: Convergence Analysis and Power-of-Choice
Selection Strategies", arXiv 2010.01243 (2020).

The variant is rpow-d, which needs no extra message: a device's loss is the one that it reported
when it last took part. Before that it counts as infinite, so that every device is asked in time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from algorithms.options import Rule, check_options
from algorithms.selection import Roster, draw_weighted
from devices.vocabulary.plan import DeviceId
from traces.arrays import IntArray


@dataclass(frozen=True)
class PowerOfChoice:
    """The largest last losses among d random devices.

    d is ``factor`` times the slots; devices come into the d by their share of the examples.
    """

    kind: ClassVar[str] = "power_of_choice"

    factor: float = 2.0

    def __post_init__(self) -> None:
        check_options(self, CANDIDATE_RULES)

    def pick(
        self, idle: IntArray, slots: int, *, roster: Roster, rng: np.random.Generator
    ) -> tuple[DeviceId, ...]:
        """Of equal losses, as where none is known, the device that was drawn first."""
        rows = roster.rows(idle)
        d = min(math.ceil(self.factor * slots), len(rows))
        drawn = draw_weighted(rows, roster.num_examples[rows], d, rng=rng)
        loss = np.nan_to_num(roster.loss[drawn], nan=math.inf)
        return roster.named(drawn[np.argsort(-loss, kind="stable")][:slots])


CANDIDATE_RULES: tuple[Rule, ...] = (("factor", "in [1, 1000]", lambda value: 1 <= value <= 1000),)
"""Of an option that says how many devices are looked at for each slot."""
