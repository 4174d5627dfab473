"""Defines a federation: everything that one simulation is made of."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from algorithms.pacing import Pacing
from algorithms.selection import Selection
from algorithms.strategy import Strategy
from devices.vocabulary.plan import Adapter
from devices.vocabulary.trainer import Evaluation, NullTrainer, Trainer
from simulator.engine.conditions import Conditions
from simulator.engine.rules import Rules
from simulator.engine.server_view import ServerView

BeginEvaluation = Callable[[Callable[[Adapter], Evaluation], Adapter], Future[Evaluation]]
"""A function that begins the evaluation of an adapter, at once or while the run goes on."""


def at_once(evaluate: Callable[[Adapter], Evaluation], adapter: Adapter) -> Future[Evaluation]:
    """Evaluate the adapter now, and return a future that holds the result."""
    future: Future[Evaluation] = Future()
    future.set_result(evaluate(adapter))
    return future


@dataclass(frozen=True, eq=False)
class Federation:
    """A federation joins the conditions and rules of a run with the algorithm that meets them."""

    world: Conditions
    rules: Rules
    strategy: Strategy[Any]
    pacing: Pacing
    selection: Selection
    trainer: Trainer
    seed: int
    begin: BeginEvaluation = at_once

    @property
    def has_global_model(self) -> bool:
        """Return True where the state's adapter is a model to be tested and exported."""
        return getattr(self.strategy, "has_global_model", True)

    @property
    def is_centralized(self) -> bool:
        """Return True where one place holds all data, and no device takes part."""
        return getattr(self.strategy, "is_centralized", False)

    @property
    def is_timing_only(self) -> bool:
        """Return True where nothing is trained, so that a device sends back what it was sent."""
        return isinstance(self.trainer, NullTrainer)

    def new_view(self) -> ServerView:
        """Return what a server knows of the fleet before it has measured anything."""
        return ServerView(self.world, self.rules.local, self.trainer)
