"""Trains by FedClock, from its YAML to its run folder, without its cache of results.

The process that is measured imports what it needs itself: no torch, where it has workers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
from rich.console import Console
from safetensors.numpy import load_file

from devices.vocabulary.plan import Adapter
from devices.vocabulary.trainer import (
    Evaluation,
    OwnTest,
    SalienceMetric,
    Trainer,
    TrainingJob,
    TrainingResult,
)
from peers.settings import begin, read_settings
from simulator.config.experiment import load_experiment
from simulator.config.schema import RunConfig
from simulator.engine.federation import at_once
from simulator.log.progress import PlainReporter
from simulator.runs.preparation import prepare
from simulator.runs.run import run
from simulator.workers.trainers import Trainers, TrainsMeanwhile
from simulator.world.build import World
from traces.arrays import FloatArray

if TYPE_CHECKING:
    from peers.job import State


class Noting:
    """This trainer notes when it is first asked."""

    def __init__(self, inner: Trainer) -> None:
        self._inner = inner
        self._begin = inner.begin if isinstance(inner, TrainsMeanwhile) else at_once

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        begin()
        return self._inner.train(jobs)

    def evaluate(self, adapter: Adapter) -> Evaluation:
        return self._inner.evaluate(adapter)

    def evaluate_own(self, tests: Sequence[OwnTest]) -> list[Evaluation]:
        return self._inner.evaluate_own(tests)

    def begin(
        self, evaluate: Callable[[Adapter], Evaluation], adapter: Adapter
    ) -> Future[Evaluation]:
        return self._begin(evaluate, adapter)

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        return self._inner.block_salience(metric)

    def block_fisher(self, adapter: Adapter) -> FloatArray:
        return self._inner.block_fisher(adapter)


class NotingTrainers(Trainers):
    """These trainers note when the first of them is first asked."""

    def get(self, config: RunConfig, world: World) -> Trainer:
        return Noting(super().get(config, world))


def train(folder: Path, rounds: int, *overrides: str) -> State:
    """Carry out a run in a folder of its own, by the settings."""
    with NotingTrainers(read_settings(folder).workers) as trainers:
        arrays = run_here(folder, rounds, trainers, *overrides)
    import torch

    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def run_here(
    folder: Path, rounds: int, trainers: Trainers, *overrides: str
) -> dict[str, npt.NDArray[Any]]:
    """Run the job's YAML, evaluated briefly at its start and end, and return what trained."""
    file = folder / "experiment.yaml"
    briefly = [f"stop.rounds={rounds}", f"evaluation.every={rounds}"]
    (config,) = load_experiment(file, [*briefly, *overrides])
    with tempfile.TemporaryDirectory() as scratch:
        report = PlainReporter(Console(quiet=True))
        prepared = prepare(config, Path(scratch) / "run", str(file))
        path = run(prepared, trainers=trainers, report=report)
        return load_file(path / "adapter" / "adapter_model.safetensors")
