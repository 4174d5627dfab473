"""LayerSel: each device trains the blocks in which its gradients are largest.

Sun, Xie, Ding, Li, Zhang: "Exploring Selective Layer Fine-Tuning in Federated Learning", ISIT 2025,
arXiv 2408.15600.

Who trains:         every device of the cohort that can hold one trained block.
What they train:    any blocks, those with the largest norms within the device's memory; the other
                    blocks are frozen.
How it is merged:   block by block, the example-weighted mean over the devices that trained it.

From the paper and its code: the objective, with the consistency term lambda, and the mean over
those who chose a layer. Ours: norms. The paper's devices pass over their data to measure squared
gradient norms before each round; here the server takes the squared norm of each block's last update
from that device. What it has not seen counts as the most it has seen of that block from anybody,
and a block that nobody trained counts as the largest norm there is. Also ours: budgets follow from
memory, where crossing a block to reach a lower one counts; the solver, in place of a mixed-integer
one; lambda in units of the mean norm. The code then fills what is left of a budget with the largest
norms; here a choice stays as the objective has it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from algorithms.merging.lora import holder_weights, mean_adapter, squared_change
from algorithms.planning.layer_choice import LayerProblem, choose_layers, plan_of_blocks
from algorithms.strategy import FleetView, ServerState, Strategy, fits
from devices.vocabulary.plan import Adapter, ClientUpdate, DeviceId, TrainingPlan
from traces.arrays import BoolArray, FloatArray, IntArray
from traces.options import Count, NotNegative, Positive

LayerNorms = Mapping[DeviceId, FloatArray]
"""(L,) of each device: the squared norm of its last update of a block; NaN: none yet."""


@dataclass(frozen=True)
class LayerSel(Strategy[LayerNorms]):
    """LayerSel trains on each device the blocks whose last updates were the largest."""

    kind: ClassVar[str] = "layersel"
    title: ClassVar[str] = "LayerSel: the blocks with the largest update norms, by device"
    draws: ClassVar[bool] = False
    is_mean: ClassVar[bool] = True

    rank: Count = 8
    alpha: Positive = 16.0
    max_blocks: Literal["memory"] | Count = "memory"
    """The most blocks that a device trains: as many as its memory holds, or a number."""
    consistency: NotNegative = 0.0
    """The cost lambda, in mean norms, of a block that only one of two devices trains."""

    def init(self, adapter: Adapter) -> ServerState[LayerNorms]:
        return ServerState(0, adapter, {})

    def plan(
        self,
        state: ServerState[LayerNorms],
        fleet: FleetView,
        cohort: Sequence[DeviceId],
        rng: np.random.Generator,
    ) -> Sequence[TrainingPlan]:
        budgets = self._budgets(fleet, cohort)
        able = [d for d in cohort if budgets[d].any()]
        if not able:
            return []
        norms = optimistic(state.memory, able, num_blocks=fleet.model.num_blocks)
        mean = norms.mean() or 1.0  # 0 if no update of this cohort changed anything
        problem = LayerProblem(norms / mean, np.stack([budgets[d] for d in able]), self.consistency)
        return [
            self._fitting_plan(fleet, device_id, chosen)
            for device_id, chosen in zip(able, choose_layers(problem), strict=True)
        ]

    def aggregate(
        self, state: ServerState[LayerNorms], updates: Sequence[ClientUpdate]
    ) -> ServerState[LayerNorms]:
        norms = dict(state.memory)
        for update in updates:
            plan, blocks = update.plan, update.plan.num_blocks
            change = squared_change(update.broadcast.adapter, update.adapter, blocks)
            known = norms.get(plan.device_id, np.full(blocks, np.nan))
            trained = plan.terms.uploaded.any(axis=(1, 2))  # (L,)
            norms[plan.device_id] = np.where(trained, change, known)
        adapter = mean_adapter(state.adapter, updates, holder_weights(updates))
        return state.advance(adapter, norms)

    def _budgets(self, fleet: FleetView, cohort: Sequence[DeviceId]) -> dict[DeviceId, IntArray]:
        """Return (L,) of each device: the most blocks that fit if l is the lowest of them."""
        known: dict[tuple[str, int], IntArray] = {}
        budgets = {}
        for device_id in cohort:
            key = (fleet.profile(device_id).name, fleet.memory_budget_bytes(device_id))
            if key not in known:
                known[key] = self._budget(fleet, device_id)
            budgets[device_id] = known[key]
        return budgets

    def _budget(self, fleet: FleetView, device_id: DeviceId) -> IntArray:
        num_blocks = fleet.model.num_blocks
        index = np.arange(num_blocks)
        limit = num_blocks if self.max_blocks == "memory" else self.max_blocks

        def most_from(lowest: int) -> int:
            def is_too_much(number: int) -> bool:
                chosen = (index >= lowest) & (index < lowest + number)
                return not fits(fleet, plan_of_blocks(fleet, device_id, chosen, rank=self.rank))

            numbers = range(1, min(limit, num_blocks - lowest) + 1)
            return bisect_left(numbers, True, key=is_too_much)

        return np.array([most_from(lowest) for lowest in range(num_blocks)])

    def _fitting_plan(
        self, fleet: FleetView, device_id: DeviceId, chosen: BoolArray
    ) -> TrainingPlan:
        """Return the plan of these blocks, without the lowest ones where they do not all fit."""
        plan = plan_of_blocks(fleet, device_id, chosen, rank=self.rank)
        while not fits(fleet, plan) and chosen.sum() > 1:
            chosen = chosen.copy()
            chosen[chosen.argmax()] = False
            plan = plan_of_blocks(fleet, device_id, chosen, rank=self.rank)
        return plan


def optimistic(known: LayerNorms, devices: Sequence[DeviceId], *, num_blocks: int) -> FloatArray:
    """Return (N, L): norms by device and block, unseen ones as large as any seen; at first 1.

    Any seen of the same block, or where there is none, of all blocks.
    """
    unseen = np.full(num_blocks, np.nan)
    seen = np.array(list(known.values())) if known else unseen[None]
    most = np.where(np.isnan(seen), -1.0, seen).max(axis=0)  # (L,): -1 where nobody knows
    top = most.max()
    if top <= 0:
        return np.ones((len(devices), num_blocks))
    own = np.stack([known.get(device_id, unseen) for device_id in devices])
    return np.where(np.isnan(own), np.where(most < 0, top, most), own)
