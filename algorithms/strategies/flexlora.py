"""FlexLoRA: the server averages whole weight updates, and sends their singular directions.

Bai, Chen, Qian, Yao, Li: "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks
and Client Resources", NeurIPS 2024, arXiv 2402.11505.

Who trains:         every device whose memory holds the smallest rank.
What they train:    the top r singular directions of every module; r by device.
How it is merged:   dW = sum of p_k scale B_k A_k, p_k by examples, cut to the full rank by an SVD.

Terms are kept by falling singular value, so a device's top r are the first r. How a device comes to
its rank is our own reconstruction: the paper draws ranks from distributions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from algorithms.merging.lora import example_weights, mean_head
from algorithms.planning.term_budgets import RankRule, fitting_ranks, plans_by_rank
from algorithms.strategy import FleetView, ServerState, Strategy
from devices.vocabulary.plan import Adapter, ClientUpdate, DeviceId, Factors, TrainingPlan
from traces.arrays import FloatArray
from traces.options import Count, Positive, RisingCounts


@dataclass(frozen=True)
class FlexLoRA(Strategy[None]):
    """FlexLoRA gives a device the largest rank that ``rank_rule`` grants and its memory holds."""

    kind: ClassVar[str] = "flexlora"
    title: ClassVar[str] = "FlexLoRA: ranks by device, exact mean of B A, SVD for the next round"
    draws: ClassVar[bool] = False

    rank: Count = 8
    alpha: Positive = 16.0
    ranks: RisingCounts = (2, 4, 8)
    """The ranks that a device may train; one above the adapter's rank means that rank."""
    rank_rule: RankRule = "speed"
    """The largest rank that a device is granted: by speed, by equal groups, or the largest."""

    def plan(
        self,
        state: ServerState[None],
        fleet: FleetView,
        cohort: Sequence[DeviceId],
        rng: np.random.Generator,
    ) -> Sequence[TrainingPlan]:
        ranks = fitting_ranks(fleet, self.ranks, rank=self.rank, rule=self.rank_rule)
        return plans_by_rank(fleet, cohort, ranks, rank=self.rank)

    def aggregate(
        self, state: ServerState[None], updates: Sequence[ClientUpdate]
    ) -> ServerState[None]:
        current = state.adapter
        modules, shares = current.modules, example_weights(updates)
        factors = {}
        for key, old in current.factors.items():
            sent = [u.plan.terms.uploaded[key.block, modules.index(key.module)] for u in updates]
            new = [u.adapter.factors[key] for u in updates]
            # Terms beyond a device's rank are dropped: it does not have them, and the update holds
            # them as they were broadcast.
            parts = [Factors(f.a[s], f.b[:, s]) for f, s in zip(new, sent, strict=True)]
            factors[key] = leading_factors(parts, shares, old)
        adapter = Adapter(factors, mean_head(current, updates), current.scale)
        return state.advance(adapter, None)


def leading_factors(parts: Sequence[Factors], weights: FloatArray, old: Factors) -> Factors:
    """Return (B, A) = (U S, V^T) of the best rank-R approximation of sum_k weights_k B_k A_k.

    The one global scale alpha / R is on both sides of that equation, so it falls out. R is that of
    ``old``. QR of the stacked factors keeps all products at the size of the stack, never of the
    layer. Singular values fall; the largest element of each row of A, the first of equal ones, is
    positive. Where there are fewer than R directions, terms keep their old row of A with B at zero:
    they add nothing, and they can learn.
    """
    b = np.concatenate(
        [w * f.b.astype(np.float64) for w, f in zip(weights, parts, strict=True)], axis=1
    )
    a = np.concatenate([f.a.astype(np.float64) for f in parts])
    q_b, r_b = np.linalg.qr(b)  # (out, S) = (out, P) @ (P, S)
    q_a, r_a = np.linalg.qr(a.T)  # (in, S) = (in, Q) @ (Q, S)
    u, s, vt = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
    is_there = s > s[0] * max(b.shape[0], a.shape[1]) * np.finfo(np.float64).eps
    num_terms = min(int(is_there.sum()), len(old.a))
    new_a, new_b = old.a.copy(), np.zeros_like(old.b)
    rows, columns = vt[:num_terms] @ q_a.T, q_b @ (u[:, :num_terms] * s[:num_terms])
    largest = np.abs(rows).argmax(axis=1)
    signs = np.sign(rows[np.arange(num_terms), largest])
    new_a[:num_terms] = signs[:, None] * rows
    new_b[:, :num_terms] = columns * signs
    return Factors(new_a, new_b)
