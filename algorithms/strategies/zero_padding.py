"""Zero padding has devices of different ranks, and a mean that counts missing terms as zero.

The control of Wang et al.: "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous
Low-Rank Adaptations", NeurIPS 2024, arXiv 2409.05976 (``--zero_padding`` in its code): the mean of
FedIT (Zhang et al., arXiv 2305.05644) on padded factors.

Who trains:         every device whose memory holds the smallest rank.
What they train:    the first r terms of every module; r by device, the rest is not sent to it.
How it is merged:   A and B padded with zeros to the full rank, the example-weighted mean over all.

That control gives ranks by hand. How a device comes to its rank here is our own reconstruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from algorithms.merging.lora import mean_adapter, padded_weights
from algorithms.planning.term_budgets import RankRule, fitting_ranks, plans_by_rank
from algorithms.strategy import FleetView, ServerState, Strategy
from devices.vocabulary.plan import ClientUpdate, DeviceId, TrainingPlan
from traces.options import Count, Positive, RisingCounts


@dataclass(frozen=True)
class ZeroPadding(Strategy[None]):
    """Zero padding gives a device the largest rank that ``rank_rule`` and its memory grant."""

    kind: ClassVar[str] = "zeropad"
    title: ClassVar[str] = "Zero padding: ranks by device, mean over all, missing terms count as 0"
    draws: ClassVar[bool] = False
    is_mean: ClassVar[bool] = True

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
        return state.advance(mean_adapter(state.adapter, updates, padded_weights(updates)), None)
