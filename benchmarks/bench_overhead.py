"""Measures what the server of a real run waits for: training, evaluation, or its own work.

python benchmarks/bench_overhead.py [--experiment FILE] [--rounds 3] [--strategy LABEL]
    [--workers 1] [KEY=VALUE ...]

The run is the demo's unless another is named, from the first event to the finished folder. Its own
work is planning, the simulation, the wire, aggregation and writing. Seconds are of the wall clock,
since workers are other processes, so the machine should be idle; with one worker, which is this
process, also of the processor.
"""

from __future__ import annotations

import argparse
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
    OwnTest,
    SalienceMetric,
    Trainer,
    TrainingJob,
    TrainingResult,
)
from simulator.config.experiment import load_experiment
from simulator.config.schema import RunConfig
from simulator.engine.federation import at_once
from simulator.log.progress import PlainReporter
from simulator.runs.preparation import prepare
from simulator.runs.run import run
from simulator.workers.trainers import Trainers, TrainsMeanwhile
from simulator.world.build import World
from traces.arrays import FloatArray

DEMO = Path("simulator/experiments/demo.yaml")


class Stopwatch:
    """A stopwatch adds up seconds: of the wall clock, and of this process on the processor."""

    def __init__(self) -> None:
        self.wall_s = self.cpu_s = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        yield
        self.wall_s += time.perf_counter() - wall_s
        self.cpu_s += time.process_time() - cpu_s


class Awaited(Future[Evaluation]):
    """This is an evaluation under way, with a stopwatch on the time spent waiting for it."""

    def __init__(self, evaluation: Future[Evaluation], watch: Stopwatch) -> None:
        super().__init__()
        self._evaluation, self._watch = evaluation, watch

    def done(self) -> bool:
        return self._evaluation.done()

    def result(self, timeout: float | None = None) -> Evaluation:
        with self._watch.running():
            return self._evaluation.result(timeout)


class Timed:
    """This trainer has stopwatches on what the server waits for."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._begin = trainer.begin if isinstance(trainer, TrainsMeanwhile) else at_once
        self.training, self.evaluation = Stopwatch(), Stopwatch()

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        with self.training.running():
            return self._trainer.train(jobs)

    def evaluate(self, adapter: Adapter) -> Evaluation:
        return self._trainer.evaluate(adapter)

    def evaluate_own(self, tests: Sequence[OwnTest]) -> list[Evaluation]:
        with self.evaluation.running():
            return self._trainer.evaluate_own(tests)

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
    """These trainers have stopwatches, and note when the first of them was ready."""

    def get(self, config: RunConfig, world: World) -> Trainer:
        self.timed = Timed(super().get(config, world))
        self.ready_s = time.perf_counter(), time.process_time()
        return self.timed


def main() -> None:
    """Print the share of each part."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--experiment", type=Path, default=DEMO)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--strategy", help="the label of one; the first if left out")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args()
    configs = load_experiment(given.experiment, [f"stop.rounds={given.rounds}", *given.overrides])
    config = next(one for one in configs if given.strategy in (None, one.label))
    with tempfile.TemporaryDirectory() as folder, TimedTrainers(given.workers) as trainers:
        prepared = prepare(config, Path(folder) / "run", str(given.experiment))
        run(prepared, trainers=trainers, report=PlainReporter(Console(quiet=True)))
        wall_s, cpu_s = trainers.ready_s
        total_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        timed = trainers.timed
    parts = {"training": timed.training, "evaluation": timed.evaluation}
    waited = {name: (watch.wall_s, watch.cpu_s) for name, watch in parts.items()}
    waited["its own work"] = tuple(
        total - sum(each) for total, *each in zip(total_s, *waited.values(), strict=True)
    )
    what = f"{given.experiment.stem} {config.label}, {given.rounds} rounds, {given.workers} workers"
    print(f"{what}: {total_s[0]:.2f} s")
    for name, (wall_s, cpu_s) in waited.items():
        also = f"; processor {cpu_s:.2f} s, {cpu_s / total_s[1]:.1%}" if given.workers == 1 else ""
        print(f"  {name}: {wall_s:.2f} s, {wall_s / total_s[0]:.1%}{also}")


if __name__ == "__main__":
    main()
