"""FedLoRA is plain federated LoRA, the reference for every other strategy.

Zhang et al.: "Towards Building the Federated GPT: Federated Instruction Tuning" (FedIT),
arXiv 2305.05644, ICASSP 2024.

Who trains:         the whole cohort.
What they train:    every rank-1 term of the top ``depth`` blocks, nothing quantized.
How it is merged:   the mean of A and the mean of B, weighted by examples.

FedIT trains all blocks: ``depth="all"``. A fixed depth and ``"common"`` are our own additions, so
that a fleet with devices too small for all blocks has a reference too; so is ``activation_bits``,
whose 0 is gradient checkpointing (Chen et al., "Training Deep Nets with Sublinear Memory Cost",
arXiv 1604.06174), the usual answer to a memory that is too small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from algorithms.merging.lora import holder_weights, mean_adapter
from algorithms.strategy import FleetView, ServerState, Strategy, make_plan, make_plans
from devices.vocabulary.plan import ClientUpdate, DeviceId, FactorUse, TermGrid, TrainingPlan
from traces.options import Count, Positive

Depth = Literal["all", "common"] | Count
"""Trained blocks from the output: ``"all"``, whether or not a device can hold them; ``"common"``,
the most that every device of the fleet can hold; or a number."""


@dataclass(frozen=True)
class FedLoRA(Strategy[None]):
    """FedLoRA gives every device the same plan, and averages A and B by examples."""

    kind: ClassVar[str] = "fedlora"
    title: ClassVar[str] = "FedLoRA (FedIT): one depth for all, mean of A and of B"
    draws: ClassVar[bool] = False
    is_mean: ClassVar[bool] = True

    rank: Count = 8
    alpha: Positive = 16.0
    depth: Depth = "all"
    """Trained blocks from the output: all, the most that every device can hold, or a number."""
    activation_bits: Literal[32, 8, 4, 0] = 32
    """The bits of saved activations; 0 saves a block's input and computes the block again."""

    def plan(
        self,
        state: ServerState[None],
        fleet: FleetView,
        cohort: Sequence[DeviceId],
        rng: np.random.Generator,
    ) -> Sequence[TrainingPlan]:
        bits = (self.activation_bits,) * fleet.model.num_blocks
        depth = depth_on(fleet, self.depth, rank=self.rank, activation_bits=self.activation_bits)
        terms = TermGrid.top_blocks(fleet.model.grid_shape(self.rank), depth)
        return make_plans(fleet, cohort, terms, activation_bits=bits)

    def aggregate(
        self, state: ServerState[None], updates: Sequence[ClientUpdate]
    ) -> ServerState[None]:
        adapter = mean_adapter(state.adapter, updates, holder_weights(updates))
        return state.advance(adapter, None)


def depth_on(
    fleet: FleetView,
    depth: Depth,
    *,
    rank: int,
    use: FactorUse = "both",
    activation_bits: int = 32,
) -> int:
    """Return how many blocks ``depth`` trains on this fleet. Raises ValueError for too many."""
    if depth == "all":
        return fleet.model.num_blocks
    if depth == "common":
        return common_depth(fleet, rank, use=use, activation_bits=activation_bits)
    if depth > fleet.model.num_blocks:
        raise ValueError(
            f"depth must be in [1, {fleet.model.num_blocks}], got {depth} "
            f"(model {fleet.model.name})"
        )
    return depth


def common_depth(
    fleet: FleetView, rank: int, *, use: FactorUse = "both", activation_bits: int = 32
) -> int:
    """Return the most blocks that every device of the fleet can train within its memory.

    Raises ValueError where some device cannot train one.
    """
    shape = fleet.model.grid_shape(rank)
    smallest: dict[str, DeviceId] = {}  # profile name -> its device with the least memory
    for device_id in sorted(fleet.device_ids, key=fleet.memory_budget_bytes):
        smallest.setdefault(fleet.profile(device_id).name, device_id)
    bits = (activation_bits,) * fleet.model.num_blocks
    for depth in range(fleet.model.num_blocks, 0, -1):
        terms = replace(TermGrid.top_blocks(shape, depth), use=use)
        peaks = {
            device_id: fleet.cost(
                make_plan(fleet, device_id, terms, activation_bits=bits)
            ).memory.total
            for device_id in smallest.values()
        }
        short = [d for d, peak in peaks.items() if peak > fleet.memory_budget_bytes(d)]
        if not short:
            return depth
    device_id = short[0]
    raise ValueError(
        f"depth common needs every device to hold one trained block, {peaks[device_id]} bytes; "
        f"device {device_id} ({fleet.profile(device_id).name}) may use "
        f"{fleet.memory_budget_bytes(device_id)}"
    )
