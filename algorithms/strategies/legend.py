"""LEGEND: each device trains as many top blocks as its pace allows, with ranks that rise upwards.

Liu, Liao, Xu, Xu, Liu, Qian: "Adaptive Parameter-Efficient Federated Fine-Tuning on Heterogeneous
Devices", arXiv 2412.20004 (2024); IEEE Trans. Mobile Computing, doi 10.1109/TMC.2025.3586644. The
authors claim 1.5x to 2.8x speed-up and 42.3 % less traffic than their baselines.

Who trains:         every device of the cohort that can hold one trained block.
What they train:    the top d blocks, d by device; block l has r_l terms a module on all devices.
How it is merged:   block by block, the example-weighted mean over the devices that trained it.

A LEGEND-style method, re-implemented from the published abstract. From the abstract: LoRA layers
near the output get the higher ranks, and depth and rank distribution fit the device. Ours: the
arithmetic sequence r_l = r_1 + (l - 1) delta, rounded; one distribution for all devices, so that a
block's factors match; the depth rule; and capacities taken from the cost model and the last
measured link instead of being estimated in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import numpy as np

from algorithms.merging.lora import holder_weights, mean_adapter
from algorithms.planning.depth_costs import DepthCosts, Work, round_times
from algorithms.planning.depth_search import deepest_within
from algorithms.strategy import FleetView, ServerState, Strategy, make_plan
from devices.vocabulary.plan import ClientUpdate, DeviceId, TermGrid, TrainingPlan
from traces.arrays import IntArray
from traces.options import Count, Positive

PaceSetter = Literal["slowest", "median"]


@dataclass(frozen=True)
class LEGEND(Strategy[None]):
    """LEGEND gives each device the depth that its pace allows, and lower blocks lower ranks.

    A round should take as long as the device that ``pace`` names needs at the depth that is
    quickest for it. The others go as deep as that allows; a slower one stays at its quickest depth.
    """

    kind: ClassVar[str] = "legend"
    title: ClassVar[str] = "LEGEND: depth by device, ranks that rise toward the output"
    draws: ClassVar[bool] = False
    is_mean: ClassVar[bool] = True

    rank: Count = 8
    alpha: Positive = 16.0
    first_rank: Count = 2
    """The rank of the lowest block; ranks rise from it to ``rank`` at the output, at most that."""
    pace: PaceSetter = "slowest"
    """The device of the cohort whose quickest depth sets how long a round should take."""

    def plan(
        self,
        state: ServerState[None],
        fleet: FleetView,
        cohort: Sequence[DeviceId],
        rng: np.random.Generator,
    ) -> Sequence[TrainingPlan]:
        costs = DepthCosts(fleet, partial(self._one_step, fleet), most_quantized=lambda depth: 0)
        able, round_s = round_times(fleet, costs, cohort)
        if not able:
            return []
        quickest_s = round_s.min(axis=1)
        limit_s = quickest_s.max() if self.pace == "slowest" else np.median(quickest_s)
        depths = np.maximum(deepest_within(round_s, float(limit_s)), round_s.argmin(axis=1) + 1)
        return [
            replace(
                costs.plan(Work(int(depth), 0)),
                device_id=device_id,
                local_steps=fleet.local_steps(device_id),
            )
            for device_id, depth in zip(able, depths, strict=True)
        ]

    def aggregate(
        self, state: ServerState[None], updates: Sequence[ClientUpdate]
    ) -> ServerState[None]:
        adapter = mean_adapter(state.adapter, updates, holder_weights(updates))
        return state.advance(adapter, None)

    def _one_step(self, fleet: FleetView, work: Work) -> TrainingPlan:
        """Return a plan of one training step, for the fleet's first device."""
        shape = fleet.model.grid_shape(self.rank)
        ranks = rising_ranks(min(self.first_rank, self.rank), self.rank, num_blocks=shape[0])
        held = np.broadcast_to(np.arange(self.rank) < ranks[:, None, None], shape)
        is_deep = np.arange(shape[0]) >= shape[0] - work.depth
        trained = held & is_deep[:, None, None]
        terms = TermGrid(held, trained, np.where(trained, 32, 0).astype(np.uint8))
        return replace(make_plan(fleet, fleet.device_ids[0], terms), local_steps=1)


def rising_ranks(first: int, last: int, *, num_blocks: int) -> IntArray:
    """Return (L,): an arithmetic sequence from the lowest block to the top, rounded half up."""
    ranks: IntArray = np.floor(np.linspace(first, last, num_blocks) + 0.5).astype(np.int64)
    ranks[-1] = last  # linspace would give a model of a single block the first rank
    return ranks
