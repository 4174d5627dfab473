"""Fed-HeLLo: devices train layers drawn by importance, as many as each of them can.

Zhang, Liu, Xu, Hu: "Fed-HeLLo: Efficient Federated Foundation Model Fine-Tuning with Heterogeneous
LoRA Allocation", arXiv 2506.12213; code TNI-playground/Fed_HeLLo, 4c07f5b, whose allocation by
Fisher information this is.

Who trains:         every device of the cohort that can hold one trained block.
What they train:    any blocks, drawn by weights that follow from their Fisher information, and kept
                    until it is measured again; the other blocks are frozen.
How it is merged:   block by block, the mean by examples over the devices that trained it.

Every ``every`` rounds the diagonal Fisher information of the global adapter is measured on texts
that the server has. A block's score is the sum of its norms over A and B of all layers. Blocks fall
into three groups by score, drawn with weights of 1/27, 2/27 and 3/27, normalised.

In the authors' code the groups are those of k-means, whose labels have no order, so that chance
says which of them is favoured. Here the group of the highest scores is, and groups are the exact
optimum of k-means on a line. The code also takes gradients of a logit; here they are those of the
loss, as Fisher information has it. Before the first measurement all blocks weigh the same.

Ours: how many blocks a device trains follows from memory, of which ``blocks`` lists the most (6, 9
or 12 of 12 in the paper); where a draw does not fit, its lowest blocks are left out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import ClassVar

import numpy as np

from algorithms.merging.lora import holder_weights, mean_adapter
from algorithms.planning.compact_models import BlockCounts
from algorithms.planning.layer_choice import plan_of_blocks
from algorithms.strategy import FleetView, ServerState, Strategy, fits
from devices.vocabulary.plan import Adapter, ClientUpdate, DeviceId, TrainingPlan
from traces.arrays import BoolArray, FloatArray
from traces.options import Count, Positive

NUM_GROUPS = 3


@dataclass(frozen=True, eq=False)
class Allocation:
    """An allocation is the blocks that devices have drawn since the last measurement.

    ``measured`` is the adapter whose Fisher information is gone by, None before the first; it was
    that of the version ``since``.
    """

    measured: Adapter | None = None
    since: int = 0
    drawn: Mapping[DeviceId, BoolArray] = field(default_factory=dict)


@dataclass(frozen=True)
class FedHeLLo(Strategy[Allocation]):
    """Fed-HeLLo trains on each device blocks that are drawn by their Fisher information."""

    kind: ClassVar[str] = "fed-hello"
    title: ClassVar[str] = "Fed-HeLLo: blocks drawn by Fisher information, by device"
    is_mean: ClassVar[bool] = True

    rank: Count = 8
    alpha: Positive = 16.0
    blocks: BlockCounts = "memory"
    """The most blocks of a device: as many as fit, or a list whose entry k mod n is device k's."""
    every: Count = 50
    """The number of rounds from one measurement of Fisher information to the next."""

    def init(self, adapter: Adapter) -> ServerState[Allocation]:
        """Return a state in which nothing has been measured or drawn."""
        return ServerState(0, adapter, Allocation())

    def plan(
        self,
        state: ServerState[Allocation],
        fleet: FleetView,
        cohort: Sequence[DeviceId],
        rng: np.random.Generator,
    ) -> Sequence[TrainingPlan]:
        measured, num_blocks = state.memory.measured, fleet.model.num_blocks
        equal = np.full(num_blocks, 1.0 / num_blocks)
        weights = equal if measured is None else draw_weights(fleet.block_fisher(measured))
        plans = []
        for device_id in cohort:
            count = self._num_blocks(fleet, device_id)
            chosen = state.memory.drawn.get(device_id)
            if chosen is None and count:
                drawn = rng.choice(num_blocks, size=count, replace=False, p=weights)
                chosen = np.isin(np.arange(num_blocks), drawn)
            if chosen is not None and count:
                plans.append(self._fitting_plan(fleet, device_id, chosen))
        return plans

    def aggregate(
        self, state: ServerState[Allocation], updates: Sequence[ClientUpdate]
    ) -> ServerState[Allocation]:
        adapter = mean_adapter(state.adapter, updates, holder_weights(updates))
        version = state.version + 1
        if version % self.every == 0:
            return state.advance(adapter, Allocation(adapter, version))
        drawn = dict(state.memory.drawn)
        for update in updates:
            if update.base_version >= state.memory.since:
                trained: BoolArray = np.any(update.plan.terms.trained, axis=(1, 2))  # (L,)
                drawn.setdefault(update.plan.device_id, trained)
        return state.advance(adapter, Allocation(state.memory.measured, state.memory.since, drawn))

    def _num_blocks(self, fleet: FleetView, device_id: DeviceId) -> int:
        """Return the most blocks, counted from the output, that a device may and can train."""
        num_blocks = fleet.model.num_blocks
        limit = num_blocks if self.blocks == "memory" else self.blocks[device_id % len(self.blocks)]

        def is_too_much(number: int) -> bool:
            top = np.arange(num_blocks) >= num_blocks - number
            return not fits(fleet, plan_of_blocks(fleet, device_id, top, rank=self.rank))

        return bisect_left(range(1, min(limit, num_blocks) + 1), True, key=is_too_much)

    def _fitting_plan(
        self, fleet: FleetView, device_id: DeviceId, chosen: BoolArray
    ) -> TrainingPlan:
        """Return the plan of these blocks without the lowest ones where they do not all fit.

        The top block takes the place of a draw of which not even the highest fits.
        """
        index = np.arange(len(chosen))
        for lowest in np.flatnonzero(chosen).tolist():
            plan = plan_of_blocks(fleet, device_id, chosen & (index >= lowest), rank=self.rank)
            if fits(fleet, plan):
                return plan
        return plan_of_blocks(fleet, device_id, index == len(chosen) - 1, rank=self.rank)


def draw_weights(scores: FloatArray) -> FloatArray:
    """Return (L,): by how much each block weighs in a draw, in sum 1; higher scores weigh more."""
    weights = 1.0 + three_groups(scores)
    normalised: FloatArray = weights / weights.sum()
    return normalised


def three_groups(scores: FloatArray) -> FloatArray:
    """Return (L,): the group 0, 1 or 2 of each score, rising, of least squared distance to means.

    Equal scores are of one group, so fewer than three values make as many groups. Exact: on a line
    groups are intervals, of which there are not many.
    """
    values, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    # Scores are scaled by the largest, since those of a small model may be too tiny to square.
    shares = values / (np.abs(values).max() or 1.0)
    num_cuts = min(NUM_GROUPS, len(values)) - 1

    def spread(cuts: tuple[int, ...]) -> float:
        parts = zip(np.split(shares, cuts), np.split(counts, cuts), strict=True)
        return sum(
            float(number @ np.square(part - np.average(part, weights=number)))
            for part, number in parts
        )

    cuts = min(combinations(range(1, len(values)), num_cuts), key=spread)
    group = np.searchsorted(cuts, np.arange(len(values)), side="right")
    groups: FloatArray = group[place].astype(np.float64)
    return groups
