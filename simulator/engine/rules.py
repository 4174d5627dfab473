"""The rules of a run: what it asks of everybody, beside the algorithm under test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from algorithms.merging.robust import AS_SENT, Robustness
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
