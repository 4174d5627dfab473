"""FedRA: each round each device trains a model of a few blocks drawn at random.

Su, Li, Xue: "FedRA: A Random Allocation Strategy for Federated Tuning to Unleash the Power of
Heterogeneous Clients", ECCV 2024, arXiv 2311.11227.

Who trains:         every device of the cohort that can hold one block.
What they train:    all terms of c blocks, drawn anew each round; the others are not on the device.
How it is merged:   block by block, the plain mean over the devices that drew it.

From the paper and its code: the uniform draw, the compact model with its embedding and head, the
unweighted mean, and that a block which nobody drew keeps its value. Ours: c is what fits a device's
memory. In the paper devices have fixed tiers (12, 10, 8, 6, 4 and 3 of 12 blocks in its code):
``blocks`` takes such a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from algorithms.merging.lora import holder_weights, mean_adapter
from algorithms.planning.compact_models import (
    BlockCounts,
    block_counts,
    compact_plan,
    counted_alike,
)
from algorithms.strategy import FleetView, ServerState, Strategy
from devices.vocabulary.plan import ClientUpdate, DeviceId, TrainingPlan
from traces.options import Count, Positive


@dataclass(frozen=True)
class FedRA(Strategy[None]):
    """FedRA trains on each device a compact model of blocks that are drawn anew each round."""

    kind: ClassVar[str] = "fedra"
    title: ClassVar[str] = "FedRA: compact models of blocks drawn at random"
    is_mean: ClassVar[bool] = True

    rank: Count = 8
    alpha: Positive = 16.0
    blocks: BlockCounts = "memory"
    """The most blocks of a device: as many as fit, or a list whose entry k mod n is device k's."""

    def plan(
        self,
        state: ServerState[None],
        fleet: FleetView,
        cohort: Sequence[DeviceId],
        rng: np.random.Generator,
    ) -> Sequence[TrainingPlan]:
        counts = block_counts(fleet, cohort, rank=self.rank, limits=self.blocks)
        return [
            compact_plan(
                fleet, device_id, rng.permutation(fleet.model.num_blocks) < count, rank=self.rank
            )
            for device_id, count in counts.items()
        ]

    def aggregate(
        self, state: ServerState[None], updates: Sequence[ClientUpdate]
    ) -> ServerState[None]:
        alike = counted_alike(updates)
        return state.advance(mean_adapter(state.adapter, alike, holder_weights(alike)), None)
