"""Local only: every device trains an adapter of its own, and nothing crosses the wire.

The reference below which federation is of no use, as FedPer, FedRep and Ditto have it (Collins,
Hassani, Mokhtari, Shakkottai: "Exploiting Shared Representations for Personalized Federated
Learning", ICML 2021, arXiv 2102.07078, and the papers that it compares).

Who trains:         the whole cohort.
What they train:    every rank-1 term of the top ``depth`` blocks, and the head.
How it is merged:   not at all: each device trains on from where it was after its last round.

Devices take their turns as under any other strategy, so that at the end each has made as many steps
as it would have in a federation. Ours: ``depth``, as in ``fedlora``. There is no global model: the
mean of adapters that never met is nobody's model, so nothing is tested between rounds or exported.
What it comes to is how well each device's model does on the device's own test data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from algorithms.strategies.fedlora import Depth, depth_on
from algorithms.strategy import FleetView, ServerState, Strategy, make_plans
from devices.vocabulary.plan import (
    Adapter,
    Broadcast,
    ClientUpdate,
    DeviceId,
    TermGrid,
    TrainingPlan,
)
from traces.options import Count, Positive

OwnModels = Mapping[DeviceId, Adapter]
"""The model of each device that has trained; the others have the initial one."""


@dataclass(frozen=True)
class LocalOnly(Strategy[OwnModels]):
    """Local only gives every device the same plan, and remembers in its stead what it has made."""

    kind: ClassVar[str] = "local-only"
    title: ClassVar[str] = "Local only: every device by itself, nothing is sent"
    draws: ClassVar[bool] = False
    has_global_model: ClassVar[bool] = False
    is_reference: ClassVar[bool] = True

    rank: Count = 8
    alpha: Positive = 16.0
    depth: Depth = "all"
    """Trained blocks from the output: all, the most that every device can hold, or a number."""

    def init(self, adapter: Adapter) -> ServerState[OwnModels]:
        """Return a state in which every device has the initial model."""
        return ServerState(0, adapter, {})

    def plan(
        self,
        state: ServerState[OwnModels],
        fleet: FleetView,
        cohort: Sequence[DeviceId],
        rng: np.random.Generator,
    ) -> Sequence[TrainingPlan]:
        depth = depth_on(fleet, self.depth, rank=self.rank, use="local")
        terms = TermGrid.top_blocks(fleet.model.grid_shape(self.rank), depth, upload_bits=0)
        return make_plans(fleet, cohort, replace(terms, use="local"))

    def broadcast(self, state: ServerState[OwnModels], plan: TrainingPlan) -> Broadcast:
        """Return what the device has kept, of which nothing is sent."""
        return Broadcast(state.version, self.own_model(state, plan.device_id))

    def own_model(self, state: ServerState[OwnModels], device_id: DeviceId) -> Adapter:
        return state.memory.get(device_id, state.adapter)

    def aggregate(
        self, state: ServerState[OwnModels], updates: Sequence[ClientUpdate]
    ) -> ServerState[OwnModels]:
        made = {
            update.plan.device_id: update.own
            for update in updates
            # In timing only nothing is trained, and a device returns the adapter that it had.
            if update.own is not None and update.own is not update.broadcast.adapter
        }
        return state.advance(state.adapter, {**state.memory, **made})
