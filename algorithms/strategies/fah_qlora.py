"""FAH-QLoRA packs base weights, and sets ranks by a latency model in each round.

FAH-QLoRA, IEEE INFOCOM 2025, doi 10.1109/INFOCOM55648.2025.11044641.

Who trains:         every device whose memory holds the model once its base weights are packed.
What they train:    the first r terms of every module; r by device and round, so that the mean rank
                    is as wanted and the round as short as that allows.
How it is merged:   A and B padded with zeros to the full rank, the example-weighted mean over all.

A FAH-QLoRA-style method; the paper was not at hand, and what we know of it is a public
re-implementation (PabloE-KAIST/FedLoRA-public). From there: both stages, T_n(r) rising with r, and
zero padding. Stage 1 moves the mean rank by the sign of the slope of the loss decrease per second;
there, devices measure that slope by evaluating every update at its rank and at one less, here the
server compares its last two rounds, by training losses. Stage 2 minimises the round time with the
sum of ranks given; there a linear program, rounded, here exact. Also ours: seconds are those of
the cost model and the last measured link; base weights get the widest format in which all terms
fit, where the code draws 4, 8, 16 or 32 bits at random.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from algorithms.merging.lora import example_weights, holder_weights, mean_adapter, padded_weights
from algorithms.planning.bit_allocation import Formats, FourBit
from algorithms.planning.depth_search import deepest_within
from algorithms.planning.term_budgets import TypicalCosts, Workload, first_terms, truncated
from algorithms.strategy import FleetView, ServerState, Strategy, make_plan
from devices.vocabulary.plan import Adapter, ClientUpdate, DeviceId, TrainingPlan, WeightFormat
from traces.arrays import FloatArray, IntArray
from traces.options import Count, Positive, check_options

Aggregation = Literal["zero_padding", "rank_one"]


@dataclass(frozen=True)
class RankSearch:
    """A rank search holds the current mean rank, and what the last round tells of its slope."""

    mean_rank: int
    step: int  # the last change of the mean rank, 1 or -1
    loss: float  # training loss of the last round; NaN before the first and without training
    rate: float  # loss decrease per second in the last round; NaN while unknown

    def observe(self, loss: float, round_s: float, *, lowest: int, highest: int) -> RankSearch:
        """Return the search after a round: it turns where the loss falls slower than before.

        At a bound the way leads back. Two rounds make a first rate, which is worth a first move.
        """
        rate = (self.loss - loss) / round_s if round_s > 0 else math.nan
        if math.isnan(rate):
            return replace(self, loss=loss)
        step = -self.step if rate < self.rate else self.step
        if not lowest <= self.mean_rank + step <= highest:
            step = -step
        mean_rank = min(max(self.mean_rank + step, lowest), highest)
        return RankSearch(mean_rank, step, loss, rate)


@dataclass(frozen=True)
class FAHQLoRA(Strategy[RankSearch]):
    """FAH-QLoRA packs base weights by memory, and gives ranks that make the round shortest."""

    kind: ClassVar[str] = "fah-qlora"
    title: ClassVar[str] = "FAH-QLoRA: ranks for the shortest round, base bits by memory"
    draws: ClassVar[bool] = False
    is_mean: ClassVar[bool] = True

    rank: Count = 8
    alpha: Positive = 16.0
    mean_rank: Count = 4
    """The mean rank over the first cohort; one above the adapter's rank means that rank."""
    min_rank: Count = 1
    """The least rank of a device, unless its memory holds less."""
    four_bit: FourBit = "nf4"
    """The format of base weights at 4 bits."""
    aggregation: Aggregation = "zero_padding"
    """The mean over all devices with zeros for missing terms, or over those that trained a term."""

    def __post_init__(self) -> None:
        check_options(self)
        if self.mean_rank < self.min_rank:
            raise ValueError(
                f"mean_rank must be at least min_rank, {self.min_rank}, got {self.mean_rank}"
            )

    def init(self, adapter: Adapter) -> ServerState[RankSearch]:
        # The first step goes down: the slope is taken between a rank and the next lower one.
        return ServerState(
            0, adapter, RankSearch(min(self.mean_rank, self.rank), -1, math.nan, math.nan)
        )

    def plan(
        self,
        state: ServerState[RankSearch],
        fleet: FleetView,
        cohort: Sequence[DeviceId],
        rng: np.random.Generator,
    ) -> Sequence[TrainingPlan]:
        formats = self._formats(fleet)
        costs = TypicalCosts(fleet, formats, rank=self.rank, grid_of=truncated)
        limits = {d: costs.first_fitting(d, self.rank) for d in cohort}
        able = {d: limit for d, limit in limits.items() if limit is not None}
        if not able:
            return []
        round_s = np.stack(
            [rank_times(fleet, costs, d, limit, rank=self.rank) for d, limit in able.items()]
        )
        total = len(able) * state.memory.mean_rank
        ranks = assign_ranks(round_s, min_rank=self.min_rank, total=total)
        shape = fleet.model.grid_shape(self.rank)
        return [
            make_plan(fleet, d, first_terms(shape, int(rank)), formats[limit.formats_index])
            for (d, limit), rank in zip(able.items(), ranks, strict=True)
        ]

    def aggregate(
        self, state: ServerState[RankSearch], updates: Sequence[ClientUpdate]
    ) -> ServerState[RankSearch]:
        weigh = padded_weights if self.aggregation == "zero_padding" else holder_weights
        loss = float(example_weights(updates) @ np.array([u.train_loss for u in updates]))
        round_s = max(sum(update.timing) for update in updates)
        return state.advance(
            mean_adapter(state.adapter, updates, weigh(updates)),
            state.memory.observe(
                loss, round_s, lowest=min(self.min_rank, self.rank), highest=self.rank
            ),
        )

    def _formats(self, fleet: FleetView) -> list[Formats]:
        """Return the formats that blocks may be packed to, from the most memory to the least."""
        names: tuple[WeightFormat, ...] = ("fp32", "fp16", "int8", self.four_bit)
        return [(name,) * fleet.model.num_blocks for name in names]


def rank_times(
    fleet: FleetView, costs: TypicalCosts, device_id: DeviceId, limit: Workload, *, rank: int
) -> FloatArray:
    """Return (R,): seconds of a round with 1 to R terms a module; inf beyond the limit.

    Never falling: a rank counts as slow as any below it.
    """
    round_s = np.full(rank, math.inf)
    link, steps = fleet.link(device_id), fleet.local_steps(device_id)
    for num_terms in range(1, limit.num_terms + 1):
        cost = costs(device_id, limit._replace(num_terms=num_terms))
        round_s[num_terms - 1] = (
            cost.download_bytes / link.down_bytes_per_s
            + steps * sum(cost.step)
            + cost.upload_bytes / link.up_bytes_per_s
        )
    rising: FloatArray = np.maximum.accumulate(round_s)
    return rising


def assign_ranks(round_s: FloatArray, *, min_rank: int, total: int) -> IntArray:
    """Return (N,): ranks that sum up to ``total`` with the least maximum of the round times.

    ``round_s`` is (N, R), column r - 1 for rank r, never falling along a row, and inf for what a
    device cannot hold. Each gets at least ``min_rank``, or the most it holds where that is less;
    a ``total`` out of reach means the nearest that is not. Exact: the best T is one of the round
    times, and the ranks that T allows grow with it. What they hold beyond ``total`` is taken from
    the slowest, one by one.
    """
    most = np.isfinite(round_s).sum(axis=1)
    least = np.minimum(min_rank, most)
    total = int(np.clip(total, least.sum(), most.sum()))
    rows = np.arange(len(round_s))
    first_s = float(round_s[rows, least - 1].max())
    times_s = np.unique(round_s[np.isfinite(round_s) & (round_s >= first_s)]).tolist()
    limit_s = times_s[
        bisect_left(times_s, total, key=lambda s: int(deepest_within(round_s, s).sum()))
    ]
    ranks = deepest_within(round_s, limit_s)
    for _ in range(int(ranks.sum()) - total):
        own_s = np.where(ranks > least, round_s[rows, ranks - 1], -math.inf)
        ranks[own_s.argmax()] -= 1
    return ranks
