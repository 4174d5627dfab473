"""RoLoRA: devices train B in one round and A in the next, so that every mean is exact.

Chen, Guo, Ju, Dalal, Zhu, Khisti: "Robust Federated Finetuning of LLMs via Alternating Optimization
of LoRA", NeurIPS 2025, arXiv 2502.01755.

Who trains:         the whole cohort.
What they train:    B of every rank-1 term of the top ``depth`` blocks in the first round, A of them
                    in the second, and so on in turns; the other factor is frozen.
How it is merged:   the mean of the trained factor by examples, exact: sum p_k B_k A = (sum p_k B_k)
                    A, and likewise for A.

Half of the terms go up. All of them go down: what was trained in the last round has moved, and the
other factor in the round before, which a device may have missed. B comes first, since the gradient
of A is zero while B is.

Ours: ``depth``, as in ``fedlora``; a late update counts for the factor that it trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from algorithms.merging.lora import holder_weights, mean_adapter, mean_head
from algorithms.strategies.fedlora import Depth, depth_on
from algorithms.strategy import FleetView, ServerState, Strategy, make_plans
from devices.vocabulary.plan import (
    Adapter,
    ClientUpdate,
    DeviceId,
    FactorName,
    Factors,
    FactorUse,
    TermGrid,
    TrainingPlan,
)
from traces.options import Count, Positive

TURNS: tuple[FactorUse, FactorUse] = ("b_in_turn", "a_in_turn")
"""The factors that are trained when the version is even and when it is odd."""


@dataclass(frozen=True)
class RoLoRA(Strategy[None]):
    """RoLoRA gives every device the same plan, in which one factor is trained."""

    kind: ClassVar[str] = "rolora"
    title: ClassVar[str] = "RoLoRA: B and A trained in turns, exact mean of each"
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
        depth = min(depth_on(fleet, self.depth, rank=self.rank, use=use) for use in TURNS)
        terms = TermGrid.top_blocks(fleet.model.grid_shape(self.rank), depth)
        return make_plans(fleet, cohort, replace(terms, use=TURNS[state.version % 2]))

    def aggregate(
        self, state: ServerState[None], updates: Sequence[ClientUpdate]
    ) -> ServerState[None]:
        of_a, of_b = (_mean_of(name, state.adapter, updates) for name in ("a", "b"))
        factors = {
            key: Factors(of_a.factors[key].a, of_b.factors[key].b) for key in state.adapter.factors
        }
        head = mean_head(state.adapter, updates)
        return state.advance(replace(state.adapter, factors=factors, head=head), None)


def _mean_of(name: FactorName, current: Adapter, updates: Sequence[ClientUpdate]) -> Adapter:
    """Return an adapter whose factor of this name is the mean over those who sent it."""
    senders = [update for update in updates if name in update.plan.terms.uploaded_factors]
    return mean_adapter(current, senders, holder_weights(senders)) if senders else current
