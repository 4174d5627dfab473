"""FedSA-LoRA: devices share A, and each keeps a B and a head of its own.

Guo, Zeng, Wang, Fan, Wang, Qu: "Selective Aggregation for Low-Rank Adaptation in Federated
Learning", ICLR 2025, arXiv 2410.01463; code fc276b5, whose settings keep ``lora_B`` and
``classifier`` local.

Who trains:         the whole cohort.
What they train:    every rank-1 term of the top ``depth`` blocks, and the head.
How it is merged:   the mean of A by examples; B and the head never leave their device.

A device trains on from its own B and head, and from the initial ones where it has not taken part
yet. What it learned in a round that was not merged is lost to it, as its A is to the server.

Ours: ``depth``, as in ``fedlora``; and the model that is evaluated and exported, in which B and the
head are the means by examples over all devices that have taken part. It is nobody's own model: the
paper judges each device's on that device's data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from algorithms.merging.lora import holder_weights, mean_adapter
from algorithms.strategies.fedlora import Depth, depth_on
from algorithms.strategy import FleetView, ServerState, Strategy, make_plans
from devices.vocabulary.plan import (
    Adapter,
    Broadcast,
    ClientUpdate,
    DeviceId,
    Factors,
    ModuleKey,
    TermGrid,
    TrainingPlan,
)
from traces.arrays import Float32Array, FloatArray
from traces.options import Count, Positive


@dataclass(frozen=True, eq=False)
class OwnPart:
    """An own part is what one device keeps: B of each layer, and the head."""

    b: Mapping[ModuleKey, Float32Array]
    head: Mapping[str, Float32Array]
    num_examples: int = 0

    @classmethod
    def of(cls, adapter: Adapter, num_examples: int = 0) -> OwnPart:
        """Return the part of an adapter that its device keeps."""
        b = {key: factors.b for key, factors in adapter.factors.items()}
        return cls(b, adapter.head, num_examples)

    def with_a_of(self, adapter: Adapter) -> Adapter:
        """Return the model of the device: this part, and A of ``adapter``."""
        factors = {key: Factors(adapter.factors[key].a, b) for key, b in self.b.items()}
        return replace(adapter, factors=factors, head=self.head)


@dataclass(frozen=True, eq=False)
class OwnParts:
    """Own parts hold what each device has kept; one that has not taken part has ``initial``."""

    initial: OwnPart
    kept: Mapping[DeviceId, OwnPart] = field(default_factory=dict)


@dataclass(frozen=True)
class FedSALoRA(Strategy[OwnParts]):
    """FedSA-LoRA gives every device the same plan, and averages A alone."""

    kind: ClassVar[str] = "fedsa-lora"
    title: ClassVar[str] = "FedSA-LoRA: A shared, B and the head stay on the device"
    draws: ClassVar[bool] = False

    rank: Count = 8
    alpha: Positive = 16.0
    depth: Depth = "all"
    """Trained blocks from the output: all, the most that every device can hold, or a number."""

    def init(self, adapter: Adapter) -> ServerState[OwnParts]:
        """Return a state in which no device has a part of its own yet."""
        return ServerState(0, adapter, OwnParts(OwnPart.of(adapter)))

    def plan(
        self,
        state: ServerState[OwnParts],
        fleet: FleetView,
        cohort: Sequence[DeviceId],
        rng: np.random.Generator,
    ) -> Sequence[TrainingPlan]:
        depth = depth_on(fleet, self.depth, rank=self.rank, use="own_b")
        terms = TermGrid.top_blocks(fleet.model.grid_shape(self.rank), depth)
        return make_plans(fleet, cohort, replace(terms, use="own_b"))

    def broadcast(self, state: ServerState[OwnParts], plan: TrainingPlan) -> Broadcast:
        """Return the global A, beside the B and the head that the device has kept."""
        return Broadcast(state.version, self.own_model(state, plan.device_id))

    def own_model(self, state: ServerState[OwnParts], device_id: DeviceId) -> Adapter:
        parts = state.memory
        if not parts.kept:  # before the first update, the global model has the initial part
            return state.adapter
        return parts.kept.get(device_id, parts.initial).with_a_of(state.adapter)

    def aggregate(
        self, state: ServerState[OwnParts], updates: Sequence[ClientUpdate]
    ) -> ServerState[OwnParts]:
        mean = mean_adapter(state.adapter, updates, holder_weights(updates))
        kept = dict(state.memory.kept)
        for update in updates:
            # In timing only nothing is trained, and a device returns the adapter that it was sent.
            if update.own is not None and update.own is not update.broadcast.adapter:
                kept[update.plan.device_id] = OwnPart.of(update.own, update.num_examples)
        if kept:
            mean = _mean_part(list(kept.values())).with_a_of(mean)
        return state.advance(mean, replace(state.memory, kept=kept))


def _mean_part(parts: Sequence[OwnPart]) -> OwnPart:
    """Return the mean of own parts by examples."""
    counts = np.array([part.num_examples for part in parts], dtype=np.float64)
    shares = counts / counts.sum()
    return OwnPart(
        {key: _mean([part.b[key] for part in parts], shares) for key in parts[0].b},
        {name: _mean([part.head[name] for part in parts], shares) for name in parts[0].head},
    )


def _mean(arrays: Sequence[Float32Array], shares: FloatArray) -> Float32Array:
    mean: Float32Array = np.einsum("k,k...->...", shares, arrays).astype(np.float32)
    return mean
