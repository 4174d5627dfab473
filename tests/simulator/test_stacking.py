"""When devices train in one pass, a result depends on its stack, and yet on nothing but the
config."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from devices.vocabulary.plan import Adapter, Factors
from devices.vocabulary.stacks import stacks_of
from devices.vocabulary.trainer import Evaluation, SalienceMetric, TrainingJob, TrainingResult
from simulator.config.experiment import ConfigError, load_experiment
from simulator.engine.server import Server, simulate
from simulator.log.progress import reporter
from simulator.runs.preparation import prepare
from simulator.runs.run import run
from simulator.workers.kept_results import SUFFIX, Checkpoint, CheckpointedTrainer
from simulator.workers.pool import Pool
from simulator.workers.processes import LocalProcesses
from simulator.workers.shared_trainer import SharedTrainer
from simulator.workers.trainers import Trainers
from tests.simulator.own_data import write_data
from tests.simulator.small import DriftTrainer, Memory, make_device, make_federation, one_context
from tests.torture import long
from traces.arrays import FloatArray

CONFIG: dict[str, Any] = {
    "name": "stacked",
    "task": {"model": "tiny", "max_length": 8},
    "training": {"dtype": "fp32", "compute": "cpu", "stack": 2},
    "shards": {"kind": "drawn", "examples": 8},
    "local": {"batch_size": 4, "steps": 2},
    "fleet": {"devices": [{"profile": "jetson-nano-5w", "count": 5, "link": "lte"}]},
    "pacing": {"kind": "synchronous", "cohort": 5},
    "evaluation": {"every": 2, "examples": 8},
    "stop": {"rounds": 2},
    "strategy": {"kind": "fedlora", "rank": 2},
}


@dataclass
class StackedDrift:
    """This trainer without torch gives results that depend on the other jobs of a stack."""

    drift: DriftTrainer = field(default_factory=DriftTrainer)
    num_chunks: int = 1  # part of the interface of a worker's trainer

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        results = self.drift.train(jobs)
        for stack in stacks_of(jobs):
            beside = np.random.default_rng([jobs[k].seed for k in stack])
            for k in stack:
                results[k] = _moved(results[k], float(beside.normal(0, 1e-5)))
        return results

    def evaluate(self, adapter: Adapter) -> Evaluation:
        return self.drift.evaluate(adapter)

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        return self.drift.block_salience(metric)

    def block_fisher(self, adapter: Adapter) -> FloatArray:
        return self.drift.block_fisher(adapter)


def _moved(result: TrainingResult, by: float) -> TrainingResult:
    factors = {
        key: Factors(a, (b + by).astype(np.float32))
        for key, (a, b) in result.adapter.factors.items()
    }
    return result._replace(adapter=replace(result.adapter, factors=factors))


def finish(folder: Path, trainer: StackedDrift, stack: int = 2) -> tuple[Server, Memory]:
    """Run three rounds of five devices, which are two stacks of two and one alone."""
    fleet = [make_device(k) for k in range(5)]
    plain = make_federation(fleet, trainer=trainer, rounds=3, stack=stack)
    kept = CheckpointedTrainer(trainer, Checkpoint(folder, pytest.fail), one_context())
    log = Memory()
    return simulate(replace(plain, trainer=kept), log), log


@long
@settings(max_examples=20)
@given(lost=st.sets(st.integers(0, 14), min_size=1))
def test_whatever_results_are_lost_the_rest_of_their_stacks_makes_them_again(
    lost: set[int],
) -> None:
    with TemporaryDirectory() as folder:
        whole, log = finish(Path(folder), first := StackedDrift())
        assert len(first.drift.jobs) == 15
        jobs = sorted(Path(folder).glob(f"*{SUFFIX}"), key=lambda file: -file.stat().st_size)[:15]
        for k in lost:
            jobs[k].unlink()
        resumed, again = finish(Path(folder), rest := StackedDrift())
    assert resumed.state.adapter.digest == whole.state.adapter.digest
    assert again.events == log.events
    assert len(lost) <= len(rest.drift.jobs) <= 2 * len(lost)


def test_another_size_of_stacks_finds_nothing(tmp_path: Path) -> None:
    finish(tmp_path, StackedDrift())
    finish(tmp_path, other := StackedDrift(), stack=3)
    finish(tmp_path, alone := StackedDrift(), stack=1)
    assert [len(one.drift.jobs) for one in (other, alone)] == [15, 15]


def no_evaluation(_: object) -> Evaluation:
    return Evaluation({})


@long
def test_workers_share_out_whole_stacks(tmp_path: Path) -> None:
    finish(tmp_path, here := StackedDrift(), stack=3)
    jobs = here.drift.jobs
    assert [len(stack) for stack in stacks_of(jobs)] == [3] * 5
    shared = SharedTrainer(Pool(LocalProcesses(StackedDrift), 2), no_evaluation)
    try:
        results = shared.train(jobs)
    finally:
        shared.close()
    assert [one.adapter.digest for one in results] == [
        one.adapter.digest for one in StackedDrift().train(jobs)
    ]


def finished(folder: Path, **training: object) -> dict[str, Any]:
    """Return the manifest of a real run."""
    if not (folder / "data").exists():
        write_data(folder / "data")
    changed = {
        "task": {**CONFIG["task"], "data": str(folder / "data")},
        "training": {**CONFIG["training"], **training},
    }
    file = folder / "x.yaml"
    file.write_text(yaml.safe_dump({**CONFIG, **changed}), "utf-8")
    (config,) = load_experiment(file)
    with Trainers(1) as trainers:
        prepared = prepare(config, folder / config.hash, str(file))
        run(prepared, trainers=trainers, report=reporter(Console(file=StringIO())))
    manifest: dict[str, Any] = json.loads(
        (folder / config.hash / "manifest.json").read_text("utf-8")
    )
    return manifest


def test_a_run_stacks_what_its_config_says_and_counts_it(tmp_path: Path) -> None:
    pairs, alone = finished(tmp_path), finished(tmp_path, stack=1)
    assert pairs["adapter_sha256"] != alone["adapter_sha256"]
    counted = [(m["num_trainings"], m["num_trainings_stacked"]) for m in (pairs, alone)]
    assert counted == [(10, 8), (10, 0)]


@pytest.mark.parametrize(
    ("stack", "said"), [(0, r"in \[1, 1000\], got 0"), (1001, r"in \[1, 1000\], got 1001")]
)
def test_a_stack_of_no_sense_is_refused(tmp_path: Path, stack: int, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"training\.stack must be .*{said}"):
        finished(tmp_path, stack=stack)
