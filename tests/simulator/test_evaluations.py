"""An evaluation may be under way while the run goes on: nobody can tell from what is written."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass, field
from functools import cache, partial
from typing import Any

import pytest

from algorithms.pacing import FedAsync, FedBuff, Pacing, SemiSynchronous, Synchronous
from devices.vocabulary.plan import Adapter
from devices.vocabulary.trainer import (
    Evaluation,
    SalienceMetric,
    TrainingError,
    TrainingJob,
    TrainingResult,
)
from simulator.config.schema import Stop
from simulator.engine.federation import BeginEvaluation, at_once
from simulator.engine.server import simulate
from tests.simulator.small import DriftTrainer, Memory, make_device, make_federation
from traces.arrays import FloatArray

NEVER = 10**9
PACINGS = [Synchronous(3), FedBuff(3, 2), FedAsync(3), SemiSynchronous(3, 0.05)]


class Late(Future[Evaluation]):
    """This result is found not to be done so many times, and is done at once when waited for."""

    def __init__(self, make: Callable[[], Evaluation], asked: int) -> None:
        super().__init__()
        self._make, self._asked = cache(make), asked

    def done(self) -> bool:
        self._asked -= 1
        return self._asked < 0

    def result(self, timeout: float | None = None) -> Evaluation:
        return self._make()


def late(asked: int) -> BeginEvaluation:
    return lambda evaluate, adapter: Late(partial(evaluate, adapter), asked)


@dataclass
class Spoilt:
    """This trainer trains and evaluates, but for what goes wrong in some round."""

    train_error: BaseException | None = None
    evaluate_error: Exception | None = None
    at: int = 2  # the number of the training or evaluation that fails
    trainer: DriftTrainer = field(default_factory=DriftTrainer)
    num_trained: int = 0
    num_evaluated: int = -1  # the initial model is the 0th

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        self.num_trained += 1
        if self.train_error and self.num_trained == self.at:
            raise self.train_error
        return self.trainer.train(jobs)

    def evaluate(self, adapter: Adapter) -> Evaluation:
        self.num_evaluated += 1
        if self.evaluate_error and self.num_evaluated == self.at:
            raise self.evaluate_error
        return self.trainer.evaluate(adapter)

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        return self.trainer.block_salience(metric)

    def block_fisher(self, adapter: Adapter) -> FloatArray:
        return self.trainer.block_fisher(adapter)


def played(begin: BeginEvaluation, log: Memory | None = None, **changed: Any) -> Memory:
    log = log or Memory()
    fleet = [make_device(k, flops_per_s=1e9 / (1 + k)) for k in range(3)]
    settings = {"trainer": DriftTrainer(), "rounds": 6, **changed}
    simulate(make_federation(fleet, begin=begin, **settings), log)
    return log


def text(log: Memory) -> str:
    """Return all that a log holds as text, in which NaN is like NaN."""
    return repr([*log.events, *map(astuple, (*log.clients, *log.rounds))])


@pytest.mark.parametrize("pacing", PACINGS, ids=lambda pacing: type(pacing).__name__)
@pytest.mark.parametrize("asked", [1, 7, NEVER])
def test_when_an_evaluation_is_known_changes_nothing_that_is_written(
    pacing: Pacing, asked: int
) -> None:
    at_first = played(at_once, pacing=pacing)
    assert len(at_first.named("evaluated")) == 7
    assert text(played(late(asked), pacing=pacing)) == text(at_first)


def test_rounds_that_are_not_evaluated_keep_their_place() -> None:
    plain = played(at_once, evaluate_every=3)
    assert [math.isnan(record.score) for record in plain.rounds] == [k % 3 != 0 for k in range(7)]
    assert text(played(late(NEVER), evaluate_every=3)) == text(plain)


def test_a_run_that_stops_at_an_accuracy_waits_for_it() -> None:
    accuracies = [record.score for record in played(at_once).rounds]
    stop = Stop(6, target=accuracies[3])
    plain = played(at_once, stop=stop)
    assert [record.score for record in plain.rounds] == accuracies[:4]
    assert text(played(late(NEVER), stop=stop)) == text(plain)


def test_the_next_round_trains_while_the_last_one_is_evaluated() -> None:
    class Crossed(Spoilt):
        """Its evaluation of a round ends after the training of the next one has begun."""

        begun = threading.Semaphore(0)

        def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
            self.begun.release()
            return super().train(jobs)

        def evaluate(self, adapter: Adapter) -> Evaluation:
            is_last = self.num_evaluated == 5
            if not is_last and not self.begun.acquire(timeout=60):
                raise TimeoutError("nobody trained meanwhile")
            return super().evaluate(adapter)

    with ThreadPoolExecutor(1) as beside:
        log = played(beside.submit, trainer=Crossed())
    assert text(log) == text(played(at_once))


@pytest.mark.parametrize("begin", [at_once, late(1), late(NEVER)])
def test_an_evaluation_that_fails_ends_the_run_where_it_stands_in_the_log(
    begin: BeginEvaluation,
) -> None:
    whole, broken = played(at_once), Memory()
    with pytest.raises(TrainingError, match="cannot evaluate"):
        played(begin, broken, trainer=Spoilt(evaluate_error=TrainingError("cannot evaluate")))
    assert len(broken.rounds) == 2
    assert broken.rounds == whole.rounds[:2]
    assert broken.events == whole.events[: len(broken.events)]
    assert broken.events[-1].name == "aggregated"


@pytest.mark.parametrize("asked", [0, 1, NEVER])
def test_a_run_that_fails_says_all_that_happened_before(asked: int) -> None:
    plain, broken = Memory(), Memory()
    for log, begin in ((plain, at_once), (broken, late(asked))):
        with pytest.raises(TrainingError, match="no memory"):
            played(begin, log, trainer=Spoilt(train_error=TrainingError("no memory")))
    assert len(plain.rounds) == 2
    assert text(broken) == text(plain)


def test_who_interrupts_a_run_does_not_wait_for_an_evaluation() -> None:
    trainer, log = Spoilt(train_error=KeyboardInterrupt()), Memory()
    with pytest.raises(KeyboardInterrupt):
        played(late(NEVER), log, trainer=trainer)
    assert trainer.num_evaluated == 0  # the first round's evaluation had not ended
    assert [record.round for record in log.rounds] == [0]
