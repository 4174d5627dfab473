"""Defines strategies that merge in another way what a strategy plans and sends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from algorithms.strategy import FleetView, M, ServerState, Strategy
from devices.vocabulary.plan import Adapter, Broadcast, DeviceId, TrainingPlan


@dataclass(frozen=True)
class Wrapped(Strategy[M]):
    """A wrapped strategy does as ``strategy`` does; a subclass says how it aggregates instead.

    A subclass that remembers more than ``strategy`` overrides ``init`` and ``inner`` too.
    """

    strategy: Strategy[Any]

    @property
    def rank(self) -> int:
        return self.strategy.rank

    @property
    def alpha(self) -> float:
        return self.strategy.alpha

    def inner(self, state: ServerState[M]) -> ServerState[Any]:
        """Return the part of a state that is ``strategy``'s own."""
        return state

    def init(self, adapter: Adapter) -> ServerState[M]:
        return self.strategy.init(adapter)

    def plan(
        self,
        state: ServerState[M],
        fleet: FleetView,
        cohort: Sequence[DeviceId],
        rng: np.random.Generator,
    ) -> Sequence[TrainingPlan]:
        return self.strategy.plan(self.inner(state), fleet, cohort, rng)

    def broadcast(self, state: ServerState[M], plan: TrainingPlan) -> Broadcast:
        return self.strategy.broadcast(self.inner(state), plan)

    def own_model(self, state: ServerState[M], device_id: DeviceId) -> Adapter:
        return self.strategy.own_model(self.inner(state), device_id)
