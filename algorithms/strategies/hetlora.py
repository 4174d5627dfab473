"""HetLoRA has a rank for each device, and a mean weighted by the norm of the updates.

Cho, Liu, Xu, Fahrezi, Joshi: "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation
Models", EMNLP 2024, arXiv 2401.06432.

Who trains:         every device whose memory holds the smallest rank.
What they train:    the first r terms of every module; r by device, the rest is not sent to it.
How it is merged:   A and B padded with zeros to the full rank, the mean over all devices weighted
                    by ||B A||_F, module by module.

Self-pruning: the local loss carries lambda ||B_tail||_F ||A_tail||_F, so that a tail
that the loss does not need shrinks; a device whose tail shrank has a lower rank from then on.

Ours: it is the server that compares the tail's score in the decoded update with that in the
broadcast, since a plan fixes what is uploaded before training. The device has then already paid for
uploading the tail, which the server drops. Also how a device comes to its first rank; a score that
sums over modules where the paper has one matrix; weights by module.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Gt, Lt

from algorithms.merging.lora import example_weights, mean_adapter
from algorithms.planning.term_budgets import RankRule, fitting_ranks, plans_by_rank
from algorithms.strategy import FleetView, ServerState, Strategy
from devices.vocabulary.plan import (
    Adapter,
    ClientUpdate,
    DeviceId,
    Factors,
    TailPenalty,
    TrainingPlan,
)
from traces.arrays import BoolArray, FloatArray
from traces.options import Count, NotNegative, Positive, RisingCounts

SelfPruning = Literal["none", "server"]
PrunedRanks = Mapping[DeviceId, int]
"""The rank of each device that has been pruned."""


@dataclass(frozen=True)
class HetLoRA(Strategy[PrunedRanks]):
    """HetLoRA trains a rank by device, prunes it, and weights updates by their norm."""

    kind: ClassVar[str] = "hetlora"
    title: ClassVar[str] = "HetLoRA: ranks by device, padded mean weighted by ||B A||"
    draws: ClassVar[bool] = False
    is_mean: ClassVar[bool] = True

    rank: Count = 8
    alpha: Positive = 16.0
    ranks: RisingCounts = (2, 4, 8)
    """The ranks that a device may train; one above the adapter's rank means that rank."""
    rank_rule: RankRule = "speed"
    """The largest rank that a device is granted: by speed, by equal groups, or the largest."""
    self_pruning: SelfPruning = "server"
    """Whether the server lowers a device's rank once the last terms have lost in its training."""
    kept_share: Annotated[float, Gt(0), Lt(1)] = 0.99
    """The share gamma of its rank that a pruned device keeps, at least the least of ``ranks``."""
    tail_penalty: NotNegative = 0.001
    """The weight lambda, in the local loss, of the terms that may be pruned; 0 adds nothing."""

    def init(self, adapter: Adapter) -> ServerState[PrunedRanks]:
        return ServerState(0, adapter, {})

    def plan(
        self,
        state: ServerState[PrunedRanks],
        fleet: FleetView,
        cohort: Sequence[DeviceId],
        rng: np.random.Generator,
    ) -> Sequence[TrainingPlan]:
        fitting = fitting_ranks(fleet, self.ranks, rank=self.rank, rule=self.rank_rule)
        ranks = {d: min(rank, state.memory.get(d, rank)) for d, rank in fitting.items()}
        plans = plans_by_rank(fleet, cohort, ranks, rank=self.rank)
        return [replace(plan, tail_penalty=self._penalty(rank_of(plan))) for plan in plans]

    def aggregate(
        self, state: ServerState[PrunedRanks], updates: Sequence[ClientUpdate]
    ) -> ServerState[PrunedRanks]:
        ranks = [self._rank_after(update) for update in updates]
        index = np.arange(state.adapter.rank)
        sent = np.stack(
            [u.plan.terms.uploaded & (index < r) for u, r in zip(updates, ranks, strict=True)]
        )
        pruned = {
            u.plan.device_id: r for u, r in zip(updates, ranks, strict=True) if r < rank_of(u.plan)
        }
        adapter = mean_adapter(state.adapter, updates, norm_weights(updates, sent))
        return state.advance(adapter, {**state.memory, **pruned})

    def _rank_after(self, update: ClientUpdate) -> int:
        """Return the device's rank after its training, lower where the score of its tail fell."""
        rank = rank_of(update.plan)
        if not self._may_shrink(rank):
            return rank
        kept = self._kept(rank)
        before = tail_score(update.broadcast.adapter, kept, rank)
        return max(self._lowest, kept) if tail_score(update.adapter, kept, rank) < before else rank

    def _penalty(self, rank: int) -> TailPenalty | None:
        if not self._may_shrink(rank) or self.tail_penalty == 0:
            return None
        return TailPenalty(self.tail_penalty, first_term=self._kept(rank))

    def _may_shrink(self, rank: int) -> bool:
        return self.self_pruning == "server" and rank > self._lowest

    def _kept(self, rank: int) -> int:
        """Return the number of terms that are not the tail."""
        return math.floor(self.kept_share * rank)

    @property
    def _lowest(self) -> int:
        return min(self.ranks[0], self.rank)


def rank_of(plan: TrainingPlan) -> int:
    """Return the terms a module that the device of a plan holds."""
    return int(plan.terms.held.sum(axis=2).max())


def tail_score(adapter: Adapter, start: int, stop: int) -> float:
    """Return the sum over modules of ||B[:, start:stop]||_F ||A[start:stop]||_F."""
    return math.fsum(
        float(np.linalg.norm(b[:, start:stop].astype(np.float64)))
        * float(np.linalg.norm(a[start:stop].astype(np.float64)))
        for a, b in adapter.factors.values()
    )


def norm_weights(updates: Sequence[ClientUpdate], sent: BoolArray) -> FloatArray:
    """Return (K, L, M, R): ||B_k A_k||_F over its sum, for all terms that k sent of a module.

    ``sent`` is (K, L, M, R). Where all of them are zero the weights are shares of the examples.
    """
    norms = np.zeros(sent.shape[:3])
    modules = updates[0].adapter.modules
    for k, update in enumerate(updates):
        for key, (a, b) in update.adapter.factors.items():
            place = (k, key.block, modules.index(key.module))
            terms = sent[place]  # (R,)
            norms[place] = product_norm(Factors(a[terms], b[:, terms]))
    total = norms.sum(axis=0)
    shares = np.broadcast_to(example_weights(updates)[:, None, None], norms.shape).copy()
    np.divide(norms, total, out=shares, where=total > 0)
    return sent * shares[..., None]


def product_norm(factors: Factors) -> float:
    """Return ||B A||_F from two (R, R) products: ||B A||_F^2 = sum of (B^T B) * (A A^T)."""
    a, b = factors.a.astype(np.float64), factors.b.astype(np.float64)
    return math.sqrt(max(float(np.sum((b.T @ b) * (a @ a.T))), 0.0))
