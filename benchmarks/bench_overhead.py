"""Measures what the server of a real run waits for: training, evaluation, or its own work.

python benchmarks/bench_overhead.py [rounds] [strategy] [workers] [KEY=VALUE ...]

The demo, from the first event to the finished folder. Its own work is planning, the simulation, the
wire, aggregation and writing. Seconds of the wall clock, since workers are other processes, so the
machine should be idle; with one worker (this process) also seconds of the processor.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from devices.vocabulary.plan import Adapter
from devices.vocabulary.trainer import (
    Evaluation,
    SalienceMetric,
    Trainer,
    TrainingJob,
    TrainingResult,
)
from simulator.config.experiment import load_experiment
from simulator.config.schema import RunConfig
from simulator.engine.federation import at_once
from simulator.log.progress import PlainReporter
from simulator.runs.run import prepare, run
from simulator.workers.trainers import Trainers, TrainsMeanwhile
from simulator.world.build import World
from traces.arrays import FloatArray

DEMO = Path("simulator/experiments/demo.yaml")


class Stopwatch:
    """Seconds spent on one thing: of the wall clock, and of this process on the processor."""

    def __init__(self) -> None:
        self.wall_s = self.cpu_s = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        yield
        self.wall_s += time.perf_counter() - wall_s
        self.cpu_s += time.process_time() - cpu_s


class Awaited(Future[Evaluation]):
    """An evaluation, and a watch on whoever waits for it."""

    def __init__(self, evaluation: Future[Evaluation], watch: Stopwatch) -> None:
        super().__init__()
        self._evaluation, self._watch = evaluation, watch

    def done(self) -> bool:
        return self._evaluation.done()

    def result(self, timeout: float | None = None) -> Evaluation:
        with self._watch.running():
            return self._evaluation.result(timeout)


class Timed:
    """A trainer with watches on what the server waits for."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._begin = trainer.begin if isinstance(trainer, TrainsMeanwhile) else at_once
        self.training, self.evaluation = Stopwatch(), Stopwatch()

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        with self.training.running():
            return self._trainer.train(jobs)

    def evaluate(self, adapter: Adapter) -> Evaluation:
        return self._trainer.evaluate(adapter)

    def begin(
        self, evaluate: Callable[[Adapter], Evaluation], adapter: Adapter
    ) -> Future[Evaluation]:
        with self.evaluation.running():
            return Awaited(self._begin(evaluate, adapter), self.evaluation)

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        return self._trainer.block_salience(metric)

    def block_fisher(self, adapter: Adapter) -> FloatArray:
        return self._trainer.block_fisher(adapter)


class TimedTrainers(Trainers):
    """Trainers with watches, one of them from when the first was ready."""

    def get(self, config: RunConfig, world: World) -> Trainer:
        self.timed = Timed(super().get(config, world))
        self.ready_s = time.perf_counter(), time.process_time()
        return self.timed


def main(rounds: str = "3", strategy: str = "fedlora", workers: str = "1", *overrides: str) -> None:
    """Print the share of each part."""
    configs = load_experiment(DEMO, [f"stop.rounds={rounds}", *overrides])
    config = next(one for one in configs if one.label == strategy)
    with tempfile.TemporaryDirectory() as folder, TimedTrainers(int(workers)) as trainers:
        prepared = prepare(config, Path(folder) / "run", str(DEMO))
        run(prepared, trainers=trainers, report=PlainReporter(Console(quiet=True)))
        wall_s, cpu_s = trainers.ready_s
        total_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        timed = trainers.timed
    parts = {"training": timed.training, "evaluation": timed.evaluation}
    waited = {name: (watch.wall_s, watch.cpu_s) for name, watch in parts.items()}
    waited["its own work"] = tuple(
        total - sum(each) for total, *each in zip(total_s, *waited.values(), strict=True)
    )
    print(f"{strategy}, {rounds} rounds of the demo, {workers} workers: {total_s[0]:.2f} s")
    for name, (wall_s, cpu_s) in waited.items():
        also = f"; processor {cpu_s:.2f} s, {cpu_s / total_s[1]:.1%}" if workers == "1" else ""
        print(f"  {name}: {wall_s:.2f} s, {wall_s / total_s[0]:.1%}{also}")


if __name__ == "__main__":
    main(*sys.argv[1:])
