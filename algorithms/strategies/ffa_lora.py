"""FFA-LoRA: A stays as it was drawn, so that the mean of B is the mean of B A.

Sun, Li, Li, Ding: "Improving LoRA in Privacy-preserving Federated Learning" (Federated Freeze A),
ICLR 2024, arXiv 2403.12313.

Who trains:         the whole cohort.
What they train:    B of every rank-1 term of the top ``depth`` blocks; A is the same on all.
How it is merged:   the mean of B by examples, exact: sum p_k B_k A = (sum p_k B_k) A.

A is drawn from a seed that the server and all devices hold, so B alone crosses the wire each way.
``depth``, as in ``fedlora``, is our own addition, and the noise of differential privacy, for which
the paper is written, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from algorithms.merging.lora import holder_weights, mean_adapter
from algorithms.strategies.fedlora import Depth, depth_on
from algorithms.strategy import FleetView, ServerState, Strategy, make_plan
from devices.vocabulary.plan import ClientUpdate, DeviceId, Factors, TermGrid, TrainingPlan
from traces.options import Count, Positive


@dataclass(frozen=True)
class FFALoRA(Strategy[None]):
    """FFA-LoRA gives every device the same plan, in which B alone is trained."""

    kind: ClassVar[str] = "ffa-lora"
    title: ClassVar[str] = "FFA-LoRA: A frozen as drawn, B alone trained and sent, exact mean"
    draws: ClassVar[bool] = False
    is_mean: ClassVar[bool] = True

    rank: Count = 8
    alpha: Positive = 16.0
    depth: Depth = "all"
    """Trained blocks from the output: all, the most that every device can hold, or a number."""

    def plan(
        self,
        state: ServerState[None],
        fleet: FleetView,
        cohort: Sequence[DeviceId],
        rng: np.random.Generator,
    ) -> Sequence[TrainingPlan]:
        depth = depth_on(fleet, self.depth, rank=self.rank, use="b_only")
        terms = TermGrid.top_blocks(fleet.model.grid_shape(self.rank), depth)
        return [make_plan(fleet, d, replace(terms, use="b_only")) for d in cohort]

    def aggregate(
        self, state: ServerState[None], updates: Sequence[ClientUpdate]
    ) -> ServerState[None]:
        mean = mean_adapter(state.adapter, updates, holder_weights(updates))
        factors = {
            key: Factors(old.a, mean.factors[key].b) for key, old in state.adapter.factors.items()
        }
        return state.advance(replace(mean, factors=factors), None)
