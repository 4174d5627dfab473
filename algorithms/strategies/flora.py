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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from algorithms.merging.lora import example_weights, mean_head
from algorithms.planning.term_budgets import RankRule, fitting_ranks, plans_by_rank
from algorithms.strategy import FleetView, ServerState, Strategy
from devices.models.spec import drawn_a
from devices.vocabulary.adapter import Merged, Product
from devices.vocabulary.merged import is_dense, side_by_side, summed
from devices.vocabulary.plan import (
    Adapter,
    Broadcast,
    ClientUpdate,
    DeviceId,
    Factors,
    ModuleKey,
    TrainingPlan,
)
from traces.arrays import IntArray
from traces.options import Count, Positive, RisingCounts, check_options

Stack = Mapping[ModuleKey, Factors]
"""What one round added to the base; a layer for which nobody sent a term is absent."""
Missed = Mapping[ModuleKey, tuple[Product, ...]]


@dataclass(frozen=True, eq=False)
class Bases:
    """The bases are the versions that devices hold, and the stacks that lead between them."""

    seed: int  # of every A
    stacks: tuple[Stack, ...] = ()  # of the last rounds, the latest at the end
    held: Mapping[DeviceId, int] = field(default_factory=dict)  # absent: version 0, as pretrained


@dataclass(frozen=True)
class FLoRA(Strategy[Bases]):
    """FLoRA gives a device the largest rank that ``rank_rule`` grants and its memory holds."""

    kind: ClassVar[str] = "flora"
    title: ClassVar[str] = "FLoRA: ranks by device, stacked and merged into the base each round"

    rank: Count = 8
    alpha: Positive = 16.0
    ranks: RisingCounts = (2, 4, 8)
    """The ranks that a device may train; one above the adapter's rank means that rank."""
    rank_rule: RankRule = "speed"
    """The largest rank that a device is granted: by speed, by equal groups, or the largest."""

    def __post_init__(self) -> None:
        check_options(self)

    def init(self, adapter: Adapter) -> ServerState[Bases]:
        """Return a state that takes the seed of later adapters from the digest of the first."""
        return ServerState(0, adapter, Bases(int(adapter.digest[:16], 16)))

    def plan(
        self,
        state: ServerState[Bases],
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
                missed_ranks=missed_ranks(state.adapter, missed(state, plan.device_id)),
            )
            for plan in plans
        ]

    def broadcast(self, state: ServerState[Bases], plan: TrainingPlan) -> Broadcast:
        rng = np.random.default_rng([state.memory.seed, state.version, plan.device_id])
        fresh = {
            key: Factors(drawn_a(a.shape, rng), np.zeros_like(b))
            for key, (a, b) in state.adapter.factors.items()
        }
        adapter = replace(state.adapter, factors=fresh)
        return Broadcast(state.version, adapter, missed(state, plan.device_id))

    def aggregate(
        self, state: ServerState[Bases], updates: Sequence[ClientUpdate]
    ) -> ServerState[Bases]:
        stack = stacked(updates)
        before, memory = state.adapter.merged.products, state.memory
        after = {
            key: summed([before[key], new] if key in before else [new])
            for key, new in stack.items()
        }
        adapter = replace(
            state.adapter,
            head=mean_head(state.adapter, updates),
            merged=Merged({**before, **after}),
        )
        held = dict(memory.held)
        for update in updates:
            device_id = update.plan.device_id
            held[device_id] = max(held.get(device_id, 0), update.broadcast.version)
        stacks = worth_keeping((*memory.stacks, stack))
        return state.advance(adapter, replace(memory, stacks=stacks, held=held))


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


def missed(state: ServerState[Bases], device_id: DeviceId) -> Missed:
    """Return what turns the base that the device has into that of now, layer by layer."""
    whole, stacks = state.adapter.merged.products, state.memory.stacks
    num_rounds = state.version - state.memory.held.get(device_id, 0)
    if num_rounds > len(stacks):
        return {key: (product,) for key, product in whole.items()}
    since = stacks[len(stacks) - num_rounds :]
    parts = {key: tuple(stack[key] for stack in since if key in stack) for key in whole}
    return {
        key: (whole[key],) if exceeds_matrix(factors) else factors
        for key, factors in parts.items()
        if factors
    }


def missed_ranks(adapter: Adapter, products: Missed) -> IntArray:
    """Return (L, M): the rank of what is sent for a layer; a whole matrix counts its own."""
    modules = adapter.modules
    ranks = np.zeros((len(adapter.factors) // len(modules), len(modules)), dtype=np.int64)
    for key, parts in products.items():
        ranks[key.block, modules.index(key.module)] = sum(
            len(part.a) if isinstance(part, Factors) else min(part.shape) for part in parts
        )
    return ranks


def exceeds_matrix(factors: Sequence[Factors]) -> bool:
    """Return whether factors side by side would be no smaller than their product."""
    rank = sum(len(a) for a, _ in factors)
    return bool(factors) and is_dense(rank, inputs=factors[0].a.shape[1], outputs=len(factors[0].b))


def worth_keeping(stacks: tuple[Stack, ...]) -> tuple[Stack, ...]:
    """Return the stacks that may still be sent.

    A stack is dropped once it and all after it are, in each layer, no smaller than the matrix."""
    for first in range(len(stacks) - 1, -1, -1):
        since = stacks[first:]
        keys = {key for stack in since for key in stack}
        if all(exceeds_matrix([stack[k] for stack in since if k in stack]) for k in keys):
            return stacks[first + 1 :]
    return stacks
