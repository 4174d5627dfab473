"""Where the seconds of a real run go: training, evaluation, and all the rest.

python benchmarks/bench_overhead.py [rounds] [strategy] [KEY=VALUE ...]

The demo on one process. The rest is planning, the simulation, the wire, aggregation and writing.
CPU seconds of the process, from the first event to the finished folder.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from devices.plan import Adapter
from devices.trainer import Evaluation, SalienceMetric, Trainer, TrainingJob, TrainingResult
from simulator.config import RunConfig
from simulator.experiment import load_experiment
from simulator.progress import PlainReporter
from simulator.run import prepare, run
from simulator.trainers import Trainers
from simulator.world import World
from traces.bandwidth import FloatArray

DEMO = Path("simulator/experiments/demo.yaml")


class Timed:
    """A trainer with a clock."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.train_s = self.evaluate_s = 0.0

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        began_s = time.process_time()
        results = self._trainer.train(jobs)
        self.train_s += time.process_time() - began_s
        return results

    def evaluate(self, adapter: Adapter) -> Evaluation:
        began_s = time.process_time()
        evaluation = self._trainer.evaluate(adapter)
        self.evaluate_s += time.process_time() - began_s
        return evaluation

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        return self._trainer.block_salience(metric)


class TimedTrainers(Trainers):
    """Trainers with clocks, and the instant at which the first was ready."""

    def get(self, config: RunConfig, world: World) -> Trainer:
        self.timed = Timed(super().get(config, world))
        self.ready_s = time.process_time()
        return self.timed


def main(rounds: str = "3", strategy: str = "fedlora", *overrides: str) -> None:
    """Print the share of each part."""
    configs = load_experiment(DEMO, [f"stop.rounds={rounds}", *overrides])
    config = next(one for one in configs if one.label == strategy)
    with tempfile.TemporaryDirectory() as folder, TimedTrainers(1) as trainers:
        prepared = prepare(config, Path(folder) / "run", str(DEMO))
        run(prepared, trainers=trainers, report=PlainReporter(Console(quiet=True)))
        total_s = time.process_time() - trainers.ready_s
        timed = trainers.timed
    rest_s = total_s - timed.train_s - timed.evaluate_s
    print(f"{strategy}, {rounds} rounds of the demo: {total_s:.2f} s of the processor")
    for name, part_s in (
        ("training", timed.train_s), ("evaluation", timed.evaluate_s), ("all the rest", rest_s)
    ):  # fmt: skip
        print(f"  {name}: {part_s:.3f} s, {part_s / total_s:.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
