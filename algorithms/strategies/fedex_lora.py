"""FedEx-LoRA: what the means of A and of B leave out of the mean of B A is added to the base.

Singhal, Ponkshe, Vepakomma: "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning
of Large Language Models", ACL 2025, arXiv 2410.09432; code CERT-Lab/fedex-lora, 683a3f3.

Who trains:         the whole cohort.
What they train:    every rank-1 term of the top ``depth`` blocks.
How it is merged:   plain means of A and of B; mean(B_k A_k) - mean(B) mean(A) joins the base.

So B A and the base together are exactly the mean of the devices' models. The residual of K devices
has a rank of at most (K + 1) R, and goes down to everybody: a device downloads those of the rounds
since it last took part, or one matrix a layer if that is smaller. Means do not weigh examples, as
in the authors' code, whose residual is transposed for layers other than GPT-2's; here it is not.

Ours: ``depth``, as in ``fedlora``; ``weights: examples``; late updates, whose factors are brought
up to date before both means are taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from algorithms.merging.bases import Bases, Missed, Stack, merged_with, missed_ranks
from algorithms.merging.lora import holder_weights, mean_adapter
from algorithms.strategies.fedlora import Depth, depth_on
from algorithms.strategy import FleetView, ServerState, Strategy, make_plan
from devices.vocabulary.merged import side_by_side
from devices.vocabulary.plan import (
    Adapter,
    Broadcast,
    ClientUpdate,
    DeviceId,
    Factors,
    TermGrid,
    TrainingPlan,
)
from traces.arrays import FloatArray
from traces.options import Count, Positive


@dataclass(frozen=True)
class FedExLoRA(Strategy[Bases]):
    """FedEx-LoRA gives every device the same plan, and keeps the residual of the means."""

    kind: ClassVar[str] = "fedex-lora"
    title: ClassVar[str] = "FedEx-LoRA: means of A and B, their residual added to the base"
    draws: ClassVar[bool] = False

    rank: Count = 8
    alpha: Positive = 16.0
    depth: Depth = "all"
    """Trained blocks from the output: all, the most that every device can hold, or a number."""
    weights: Literal["equal", "examples"] = "equal"
    """Whether devices count alike, or by their examples."""

    def init(self, adapter: Adapter) -> ServerState[Bases]:
        """Return a state in which every device has the base as pretrained."""
        return ServerState(0, adapter, Bases())

    def plan(
        self,
        state: ServerState[Bases],
        fleet: FleetView,
        cohort: Sequence[DeviceId],
        rng: np.random.Generator,
    ) -> Sequence[TrainingPlan]:
        depth = depth_on(fleet, self.depth, rank=self.rank)
        terms = TermGrid.top_blocks(fleet.model.grid_shape(self.rank), depth)
        return [
            replace(
                make_plan(fleet, device_id, terms),
                missed_ranks=missed_ranks(state.adapter, _missed(state, device_id)),
            )
            for device_id in cohort
        ]

    def broadcast(self, state: ServerState[Bases], plan: TrainingPlan) -> Broadcast:
        return Broadcast(state.version, state.adapter, _missed(state, plan.device_id))

    def aggregate(
        self, state: ServerState[Bases], updates: Sequence[ClientUpdate]
    ) -> ServerState[Bases]:
        if self.weights == "equal":
            updates = [replace(update, num_examples=1) for update in updates]
        weights = holder_weights(updates)
        mean = mean_adapter(state.adapter, updates, weights)
        # All terms of a layer are sent together, so the first one's weights stand for all.
        stack = residuals(mean, updates, weights[..., 0])
        adapter = replace(mean, merged=merged_with(state.adapter.merged, stack))
        return state.advance(adapter, state.memory.after(stack, updates))


def residuals(mean: Adapter, updates: Sequence[ClientUpdate], shares: FloatArray) -> Stack:
    """Return, for each layer that was sent, sum_k shares_k B_k A_k - B A of the mean, as factors.

    ``shares`` (K, L, M) are those of the layer's senders, and stand on B alone. The mean's own
    factors come last, with B negated.
    """
    stack = {}
    for key, (a, b) in mean.factors.items():
        of_layer = shares[:, key.block, mean.modules.index(key.module)]  # (K,)
        parts = [
            Factors(own.a, (share * own.b).astype(np.float32))
            for own, share in zip((u.adapter.factors[key] for u in updates), of_layer, strict=True)
            if share
        ]
        if parts:
            stack[key] = side_by_side([*parts, Factors(a, -b)])
    return stack


def _missed(state: ServerState[Bases], device_id: DeviceId) -> Missed:
    return state.memory.missed(state.adapter, state.version, device_id)
