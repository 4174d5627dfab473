"""Defines the rules of a run: what it asks of everybody, beside the algorithm under test."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from algorithms.merging.robust import AS_SENT, Robustness
from algorithms.strategy import Strategy
from devices.options import Schedule, TrainingOptions
from simulator.config.schema import LocalWork, Stop

WhenOffline = Literal["abort", "resume", "restart"]
WhenOutOfMemory = Literal["skip", "shrink", "drop"]
WhenDiverged = Literal["stop", "drop"]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The rules hold for every device and round of a run, whatever the strategy decides."""

    local: LocalWork
    """What a device does in one plan: batches, steps or epochs, and the formats it works in."""
    stop: Stop
    """When the run ends."""
    evaluate_every: int = 1
    """The number of rounds from one evaluation of the global model to the next."""
    robustness: Robustness = AS_SENT
    """How updates are clipped, trimmed or refused before the strategy merges them."""
    when_offline: WhenOffline = "abort"
    """What a device does with its work when it goes offline."""
    when_out_of_memory: WhenOutOfMemory = "skip"
    """What a device does when its free memory does not hold its plan."""
    when_diverged: WhenDiverged = "stop"
    """Whether a training that goes to infinity ends the run, or only its update is dropped."""
    stack: int = 1
    """The most updates that the host may train in one pass."""
    learning_rate: float = TrainingOptions.learning_rate
    """The learning rate of every step, before the schedule."""
    schedule: Schedule = Schedule()
    """How the learning rate changes from round to round."""
    rslora: bool = False
    """Whether the scale of the factors is alpha / sqrt(R) in place of alpha / R."""

    def alpha(self, strategy: Strategy[Any]) -> float:
        """Return the alpha by which alpha / R is the scale of the strategy's factors."""
        return strategy.alpha * (math.sqrt(strategy.rank) if self.rslora else 1.0)

    def rate_share(self, round_number: int) -> float:
        """Return the share of the learning rate that plans of a round are trained with."""
        return self.schedule.share(round_number, self.stop.rounds)

    def rate(self, round_number: int) -> float:
        """Return the learning rate that plans of a round are trained with."""
        return self.learning_rate * self.rate_share(round_number)
