"""InclusiveFL gives small devices shallow models, which take in the momentum of deeper ones.

Liu, Wu, Wu, Wang, Lyu, Chen, Xie: "No One Left Behind: Inclusive Federated Learning over
Heterogeneous Devices", KDD 2022, arXiv 2202.08036, doi 10.1145/3534678.3539086.

Who trains:         every device of the cohort that can hold one block.
What they train:    all terms of the first c blocks and the head on top of them, c by device; the
                    blocks above are not on the device.
How it is merged:   the last block of a shallow model first takes in the momentum of deeper ones;
                    then block by block the plain mean over the devices that hold it.

Momentum distillation, for a device with c blocks, where c' is the next larger size:

    update of block c  <-  (1 - beta) update of block c  +  beta mean of m_l over l = c + 1 .. c'

m_l is the mean update of block l on the devices with c' blocks, the last time that any of them took
part. beta = 0.2 is the authors' own. There is no m before a deeper model has been trained, and then
a device's update counts whole.

From FedRA's re-implementation with LoRA (arXiv 2311.11227), whose code defines the distillation and
never calls it: the rule above, and the plain mean. Ours: c is what fits a device's memory, where
the authors' code has tiers of 4, 8 and 12 of 12 blocks (``blocks`` takes such a list); and one
adapter for all sizes, where their code may keep the classifier and the last block of each size
apart. Factors of two blocks do not share a basis, so what LoRA passes down is rougher than what
full fine-tuning does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from devices.vocabulary.plan import (
    Adapter,
    ClientUpdate,
    DeviceId,
    Factors,
    ModuleKey,
    TrainingPlan,
)
from traces.options import Count, Positive, Share

Change = Mapping[ModuleKey, Factors]
"""The change of each factor in training."""
Momentum = Mapping[int, Change]
"""By number of blocks: the mean update of the devices of that size, the last time any took part."""


@dataclass(frozen=True)
class InclusiveFL(Strategy[Momentum]):
    """InclusiveFL trains on each device the first blocks that fit, and passes momentum down."""

    kind: ClassVar[str] = "inclusivefl"
    title: ClassVar[str] = "InclusiveFL: the first blocks by device, momentum passed down"
    draws: ClassVar[bool] = False
    is_mean: ClassVar[bool] = True

    rank: Count = 8
    alpha: Positive = 16.0
    blocks: BlockCounts = "memory"
    """The most blocks of a device: as many as fit, or a list whose entry k mod n is device k's."""
    distillation: Share = 0.2
    """The share beta of deeper blocks' momentum in a last block; 0 leaves the plain mean."""

    def init(self, adapter: Adapter) -> ServerState[Momentum]:
        return ServerState(0, adapter, {})

    def plan(
        self,
        state: ServerState[Momentum],
        fleet: FleetView,
        cohort: Sequence[DeviceId],
        rng: np.random.Generator,
    ) -> Sequence[TrainingPlan]:
        counts = block_counts(fleet, cohort, rank=self.rank, limits=self.blocks)
        index = np.arange(fleet.model.num_blocks)
        return [
            compact_plan(fleet, device_id, index < count, rank=self.rank)
            for device_id, count in counts.items()
        ]

    def aggregate(
        self, state: ServerState[Momentum], updates: Sequence[ClientUpdate]
    ) -> ServerState[Momentum]:
        updates = counted_alike(updates)
        merged = [self._distilled(update, state.memory) for update in updates]
        adapter = mean_adapter(state.adapter, merged, holder_weights(merged))
        return state.advance(adapter, {**state.memory, **mean_changes(updates)})

    def _distilled(self, update: ClientUpdate, momentum: Momentum) -> ClientUpdate:
        """Return the update with the momentum of the next larger size in its last block."""
        size, beta = update.plan.depth, np.float32(self.distillation)
        deeper = min((known for known in momentum if known > size), default=None)
        if deeper is None or beta == 0:
            return update
        factors = dict(update.adapter.factors)
        for module in update.adapter.modules:
            key = ModuleKey(size - 1, module)
            above = _mean([momentum[deeper][key._replace(block=k)] for k in range(size, deeper)])
            start, own = update.broadcast.adapter.factors[key], change_of(update, key)
            factors[key] = Factors(
                start.a + (1 - beta) * own.a + beta * above.a,
                start.b + (1 - beta) * own.b + beta * above.b,
            )
        return replace(update, adapter=replace(update.adapter, factors=factors))


def mean_changes(updates: Sequence[ClientUpdate]) -> Momentum:
    """Return, by size, the plain mean change of each of its blocks over devices of that size."""
    by_size: dict[int, list[ClientUpdate]] = defaultdict(list)
    for update in updates:
        by_size[update.plan.depth].append(update)
    return {
        size: {
            key: _mean([change_of(update, key) for update in group])
            for key in group[0].adapter.factors
            if key.block < size
        }
        for size, group in by_size.items()
    }


def change_of(update: ClientUpdate, key: ModuleKey) -> Factors:
    """Return by how much the device moved both factors of a layer."""
    start, end = update.broadcast.adapter.factors[key], update.adapter.factors[key]
    return Factors(end.a - start.a, end.b - start.b)


def _mean(changes: Sequence[Factors]) -> Factors:
    return Factors(
        np.mean([change.a for change in changes], axis=0),
        np.mean([change.b for change in changes], axis=0),
    )
