"""FLoRA: what devices learned is stacked, merged into the base model, and everybody starts afresh.

Wang, Shen, He, Sun, Wang, Lyu, Li: "FLoRA: Federated Fine-Tuning Large Language Models with
Heterogeneous Low-Rank Adaptations", NeurIPS 2024, arXiv 2409.05976.

Who trains:         every device whose memory holds the smallest rank.
What they train:    r terms of every module, fresh in each round: A drawn anew, B zero; r by device.
How it is merged:   [B_1, B_2, ...] [p_1 A_1; p_2 A_2; ...] is added to the frozen weights, exactly.

A device draws its A from a seed that comes with the plan, so no terms go down. What goes down is
what was merged since the device last took part: the stacks of those rounds, or, where they are no
smaller, one matrix a layer with the sum of all rounds. The server keeps no older stacks than that.

Ours: that choice of the smaller one, and that a device is known to have a round's base once its
update has arrived: one that was late or failed downloads it again. How a device comes to its rank
(the paper gives ranks by hand). Without rounds, a late update is a product like any other: it is
merged as it is, faded by its staleness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from algorithms.merging.bases import Bases, Missed, Stack, merged_with, missed_ranks
from algorithms.merging.lora import example_weights, mean_head
from algorithms.planning.term_budgets import RankRule, fitting_ranks, plans_by_rank
from algorithms.strategy import FleetView, ServerState, Strategy
from devices.models.spec import drawn_a
from devices.vocabulary.merged import side_by_side
from devices.vocabulary.plan import (
    Adapter,
    Broadcast,
    ClientUpdate,
    DeviceId,
    Factors,
    TrainingPlan,
)
from traces.options import Count, Positive, RisingCounts


@dataclass(frozen=True, eq=False)
class Fresh:
    """FLoRA's memory is the seed of every A, and the bases that devices have."""

    seed: int
    bases: Bases = Bases()


@dataclass(frozen=True)
class FLoRA(Strategy[Fresh]):
    """FLoRA gives a device the largest rank that ``rank_rule`` grants and its memory holds."""

    kind: ClassVar[str] = "flora"
    title: ClassVar[str] = "FLoRA: ranks by device, stacked and merged into the base each round"
    draws: ClassVar[bool] = False

    rank: Count = 8
    alpha: Positive = 16.0
    ranks: RisingCounts = (2, 4, 8)
    """The ranks that a device may train; one above the adapter's rank means that rank."""
    rank_rule: RankRule = "speed"
    """The largest rank that a device is granted: by speed, by equal groups, or the largest."""

    def init(self, adapter: Adapter) -> ServerState[Fresh]:
        """Return a state that takes the seed of later adapters from the digest of the first."""
        return ServerState(0, adapter, Fresh(int(adapter.digest[:16], 16)))

    def plan(
        self,
        state: ServerState[Fresh],
        fleet: FleetView,
        cohort: Sequence[DeviceId],
        rng: np.random.Generator,
    ) -> Sequence[TrainingPlan]:
        ranks = fitting_ranks(fleet, self.ranks, rank=self.rank, rule=self.rank_rule)
        plans = plans_by_rank(fleet, cohort, ranks, rank=self.rank)
        return [
            replace(
                plan,
                terms=replace(plan.terms, use="fresh"),
                missed_ranks=missed_ranks(state.adapter, _missed(state, plan.device_id)),
            )
            for plan in plans
        ]

    def broadcast(self, state: ServerState[Fresh], plan: TrainingPlan) -> Broadcast:
        rng = np.random.default_rng([state.memory.seed, state.version, plan.device_id])
        fresh = {
            key: Factors(drawn_a(a.shape, rng), np.zeros_like(b))
            for key, (a, b) in state.adapter.factors.items()
        }
        adapter = replace(state.adapter, factors=fresh)
        return Broadcast(state.version, adapter, _missed(state, plan.device_id))

    def aggregate(
        self, state: ServerState[Fresh], updates: Sequence[ClientUpdate]
    ) -> ServerState[Fresh]:
        stack = stacked(updates)
        memory = state.memory
        adapter = replace(
            state.adapter,
            head=mean_head(state.adapter, updates),
            merged=merged_with(state.adapter.merged, stack),
        )
        return state.advance(adapter, replace(memory, bases=memory.bases.after(stack, updates)))


def stacked(updates: Sequence[ClientUpdate]) -> Stack:
    """Return all terms that were sent, side by side, with the weight by examples on A alone."""
    modules, shares = updates[0].adapter.modules, example_weights(updates)
    stack = {}
    for key in updates[0].adapter.factors:
        parts = []
        for update, share in zip(updates, shares, strict=True):
            sent = update.plan.terms.uploaded[key.block, modules.index(key.module)]  # (R,)
            a, b = update.adapter.factors[key]
            parts.append(Factors((share * a[sent]).astype(np.float32), b[:, sent]))
        if any(len(part.a) for part in parts):
            stack[key] = side_by_side(parts)
    return stack


def _missed(state: ServerState[Fresh], device_id: DeviceId) -> Missed:
    return state.memory.bases.missed(state.adapter, state.version, device_id)
