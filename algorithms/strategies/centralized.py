"""Centralized trains one model on all data in one place, without any federation.

The reference above which a federation rarely comes, as McMahan et al. have it ("Communication-
Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017, arXiv 1602.05629) and
nearly every paper since.

Who trains:         one place, which holds the examples of every device of the fleet.
What they train:    every rank-1 term of the top ``depth`` blocks, and the head.
How it is merged:   not at all: what the place has trained is the model.

A round is one training with the ``local`` section's recipe, on batches drawn from all examples. It
makes as many steps as the updates of a round would together, so that after as many rounds it has
seen as many examples as a federation that loses nothing. Ours: ``depth``, as in ``fedlora``;
``profile``; and that an optimizer begins anew with each round, as those of devices do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from algorithms.merging.lora import example_weights
from algorithms.strategies.fedlora import depth_on
from algorithms.strategy import FleetView, ServerState, Strategy, make_plans
from devices.fleet.catalog import profile
from devices.vocabulary.controls import elementwise
from devices.vocabulary.plan import ClientUpdate, DeviceId, TermGrid, TrainingPlan
from traces.options import Count, Positive, check_options


@dataclass(frozen=True)
class Centralized(Strategy[None]):
    """Centralized trains one model on the data of all devices, in one place (``is_centralized``).

    The engine gives it that place. In a fleet of several, as ``fedclock check`` has them, each
    counts by its examples.
    """

    kind: ClassVar[str] = "centralized"
    title: ClassVar[str] = "Centralized: all data in one place, no federation"
    draws: ClassVar[bool] = False
    is_centralized: ClassVar[bool] = True
    is_reference: ClassVar[bool] = True

    rank: Count = 8
    alpha: Positive = 16.0
    depth: Literal["all"] | Count = "all"
    """Trained blocks from the output: all, or a number."""
    profile: str | None = None
    """The device of the catalog whose seconds and joules are charged; without one no time passes,
    and the columns of time and energy are empty."""

    def __post_init__(self) -> None:
        check_options(self)
        if self.profile is None:
            return
        if ".toml" in self.profile:  # the hash of a config does not cover the content of a file
            raise ValueError(f"profile must be a device of our catalog, got {self.profile!r}")
        try:
            profile(self.profile)
        except ValueError as error:
            raise ValueError(f"profile must be a device of our catalog: {error}") from None

    def plan(
        self,
        state: ServerState[None],
        fleet: FleetView,
        cohort: Sequence[DeviceId],
        rng: np.random.Generator,
    ) -> Sequence[TrainingPlan]:
        depth = depth_on(fleet, self.depth, rank=self.rank)
        terms = TermGrid.top_blocks(fleet.model.grid_shape(self.rank), depth, upload_bits=0)
        return make_plans(fleet, cohort, replace(terms, use="local"))

    def aggregate(
        self, state: ServerState[None], updates: Sequence[ClientUpdate]
    ) -> ServerState[None]:
        trained = [update.own or state.adapter for update in updates]
        if len(trained) == 1:
            return state.advance(trained[0], None)
        shares = example_weights(updates)
        mean = elementwise(lambda *same: sum(map(np.multiply, shares, same)), *trained)
        return state.advance(mean, None)
