"""Everything that a simulation is made of."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

from algorithms.merging.robust import AS_SENT, Robustness
from algorithms.pacing import Pacing
from algorithms.selection import Selection
from algorithms.strategy import Strategy
from devices.fleet.fleet import Fleet
from devices.tasks.task import Metric
from devices.vocabulary.plan import Adapter
from devices.vocabulary.trainer import Evaluation, Trainer
from simulator.config.schema import Stop
from simulator.engine.device import WhenOffline, WhenOutOfMemory
from simulator.engine.faults import Faults
from simulator.engine.network import NOTHING_SHARED, SharedLinks
from simulator.engine.server_view import ServerView

WhenDiverged = Literal["stop", "drop"]


BeginEvaluation = Callable[[Callable[[Adapter], Evaluation], Adapter], Future[Evaluation]]
"""Has an evaluation done, now or while the run goes on."""


def at_once(evaluate: Callable[[Adapter], Evaluation], adapter: Adapter) -> Future[Evaluation]:
    """The evaluation, done."""
    future: Future[Evaluation] = Future()
    future.set_result(evaluate(adapter))
    return future


@dataclass(frozen=True, eq=False)
class Federation:
    """Everything a simulation is made of."""

    seed: int
    fleet: Fleet
    view: ServerView
    strategy: Strategy[Any]
    pacing: Pacing
    selection: Selection
    trainer: Trainer
    metrics: tuple[Metric, ...]  # of the task; the first is what a target is one of
    evaluate_every: int
    stop: Stop
    faults: Faults
    shared_links: SharedLinks = NOTHING_SHARED
    when_offline: WhenOffline = "abort"
    when_out_of_memory: WhenOutOfMemory = "skip"
    when_diverged: WhenDiverged = "stop"
    robustness: Robustness = AS_SENT
    begin: BeginEvaluation = at_once
    stack: int = 1  # updates that may be trained in one pass
