"""Trains FedClock and the loop by hand in turns, client by client: ``peers.in_turns JOB ROUNDS``.

Both in one process, on the same batches, so that what else the machine does falls on both alike.
Prints seconds of a client and round for each round but the last: all of FedClock's run, from
planning to its checkpoints, and all of the loop's.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from devices.vocabulary.plan import Adapter
from devices.vocabulary.trainer import (
    Evaluation,
    SalienceMetric,
    Trainer,
    TrainingJob,
    TrainingResult,
)
from peers.job import Job
from peers.loop import Loop
from peers.with_fedclock import run_here
from simulator.config.schema import RunConfig
from simulator.workers.trainers import Trainers
from simulator.world.build import World
from traces.arrays import FloatArray

TOLERANCE = 1e-4
"""The largest difference between the adapters at the end, which comes of rounding through Adam."""


class InTurns:
    """This trainer lets the loop train the same client after each of its own."""

    def __init__(self, inner: Trainer, job: Job) -> None:
        self._inner, self._job, self.loop = inner, job, Loop(job)
        self.began_s: list[float] = []  # the start of each round
        self.loop_s: list[float] = []

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        self.began_s.append(time.perf_counter())
        self.loop_s.append(0.0)
        results = []
        for client, (job, batches) in enumerate(
            zip(jobs, self._job.batches[len(self.began_s) - 1], strict=True)
        ):
            results += self._inner.train([job])
            began_s = time.perf_counter()
            self.loop.client(client, batches)
            self.loop_s[-1] += time.perf_counter() - began_s
        began_s = time.perf_counter()
        self.loop.end_round()
        self.loop_s[-1] += time.perf_counter() - began_s
        return results

    def evaluate(self, adapter: Adapter) -> Evaluation:
        return self._inner.evaluate(adapter)

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        return self._inner.block_salience(metric)

    def block_fisher(self, adapter: Adapter) -> FloatArray:
        return self._inner.block_fisher(adapter)

    def pairs(self) -> list[tuple[float, float]]:
        """Return a client's seconds by FedClock and by the loop, for each round but the last."""
        num_clients = len(self._job.shards)
        return [
            ((ends_s - began_s - loop_s) / num_clients, loop_s / num_clients)
            for began_s, ends_s, loop_s in zip(
                self.began_s, self.began_s[1:], self.loop_s, strict=False
            )
        ]


class InTurnsTrainers(Trainers):
    """These trainers take turns with the loop, in this process."""

    def __init__(self, folder: Path) -> None:
        super().__init__(workers=1)
        self._folder = folder

    def get(self, config: RunConfig, world: World) -> Trainer:
        self.turns = InTurns(super().get(config, world), Job.load(self._folder))
        return self.turns


def take_turns(folder: Path, rounds: int) -> list[tuple[float, float]]:
    """Return ``InTurns.pairs``. Raises ValueError where the two did not take the same steps."""
    with InTurnsTrainers(folder) as trainers:
        arrays = run_here(folder, rounds, trainers)
        ours = {name: torch.from_numpy(array) for name, array in arrays.items()}
        theirs = trainers.turns.loop.state
    apart = max(float((theirs[name] - ours[name]).abs().max()) for name in theirs)
    if not apart <= TOLERANCE:
        raise ValueError(f"both adapters must be the same to {TOLERANCE:g}, got {apart:g} apart")
    return trainers.turns.pairs()


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(take_turns(Path(sys.argv[1]), int(sys.argv[2]))))
