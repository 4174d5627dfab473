"""Where every device trains by itself nothing crosses the wire, and no global model is invented."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from algorithms.checks import check_strategy
from algorithms.pacing import FedAsync, FedBuff, Pacing, SemiSynchronous, Synchronous
from algorithms.strategies.fedlora import FedLoRA
from algorithms.strategies.local_only import LocalOnly
from analysis.metrics.study import study_of
from analysis.report.table import study_table
from analysis.runs.load import Run, load_run
from devices.vocabulary.plan import Adapter, DeviceId
from simulator.config.experiment import ConfigError, load_experiment
from simulator.engine.server import simulate
from simulator.world.build import build_world
from tests.command_line import fedclock
from tests.simulator.small import DriftTrainer, Memory, OneByOne, make_device, make_federation
from tests.simulator.test_command import REAL
from tests.torture import long
from traces.bandwidth import BandwidthTrace, Link
from traces.steps import StepTrace

STRATEGIES = {
    "fedlora": {"kind": "fedlora", "rank": 2},
    "own": {"kind": "fedsa-lora", "rank": 2},
    "alone": {"kind": "local-only", "rank": 2},
}
PACINGS: dict[str, Pacing] = {
    "synchronous": Synchronous(cohort=3),
    "semi_synchronous": SemiSynchronous(cohort=4, period_s=0.02),
    "fedbuff": FedBuff(concurrency=4, size=2),
    "fedasync": FedAsync(concurrency=3),
}


@pytest.mark.parametrize("pacing", PACINGS.values(), ids=PACINGS)
def test_each_device_keeps_what_it_has_made_under_every_pacing(pacing: Pacing) -> None:
    trainer, log = DriftTrainer(), Memory()
    federation = make_federation(
        [make_device(k, flops_per_s=4e9 / 2**k) for k in range(5)],
        strategy=LocalOnly(rank=2),
        pacing=pacing,
        trainer=trainer,
        rounds=12,
    )
    server = simulate(federation, log)
    models: Mapping[DeviceId, Adapter] = server.state.memory
    numbers = []
    for device_id, model in models.items():
        jobs = [job for job in trainer.jobs if job.plan.device_id == device_id]
        made = [trainer._result(job).adapter.digest for job in jobs]
        had = {server.state.adapter.digest}
        for job, end in zip(jobs, made, strict=True):
            assert job.broadcast.adapter.digest in had  # the initial model or an own earlier one
            had.add(end)
        assert model.digest == made[-1]
        numbers.append(len(jobs))
    assert max(numbers) > 1
    assert all(record.upload_bytes == record.download_bytes == 0 for record in log.clients)
    assert all(record.upload_s == record.download_s == 0 for record in log.clients)
    assert all(record.train_s > 0 for record in log.clients if record.outcome == "aggregated")
    assert all(math.isnan(record.score) for record in log.rounds)
    assert not log.named("evaluated")


def test_no_link_is_waited_for() -> None:
    """Neither one that is down for ever nor a latency, whichever way a plan is simulated."""
    dead = BandwidthTrace.constant(0.0)
    fleet = [
        make_device(0),
        make_device(1, latency=StepTrace.constant(7.0)),
        replace(make_device(2), link=Link("dead", dead, dead)),
    ]
    ends = []
    for trainer in (None, OneByOne(3), DriftTrainer()):
        log = Memory()
        simulate(make_federation(fleet, strategy=LocalOnly(rank=2), trainer=trainer, rounds=2), log)
        ends.append([record.finished_s for record in log.clients])
        assert log.rounds[-1].num_aggregated == 3
        assert log.rounds[-1].closed_s == pytest.approx(2 * log.clients[0].train_s)
    assert ends[0] == ends[1] == ends[2]


def test_a_device_trains_as_long_and_holds_as_much_as_under_fedlora() -> None:
    found = set()
    for strategy in (LocalOnly(rank=2), FedLoRA(rank=2)):
        log = Memory()
        simulate(make_federation([make_device(0)], strategy=strategy, rounds=1), log)
        found.add((log.clients[0].peak_memory_bytes, log.clients[0].flops))
    assert len(found) == 1


def test_it_keeps_the_contract() -> None:
    check_strategy(LocalOnly(rank=3))


def write(folder: Path, **changed: Any) -> Path:
    file = folder / "alone.yaml"
    share = {"every": 1, "examples": 40, "own_share": 0.25}
    config = {**REAL, "evaluation": share, "strategies": STRATEGIES, **changed}
    file.write_text(yaml.safe_dump(config), "utf-8")
    return file


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("alone")
    done = fedclock("run", write(home), "--workers", "1", "--no-cache", cwd=home)
    assert done.returncode == 0, done.stderr
    return home


def runs_in(home: Path) -> dict[str, Run]:
    found = [load_run(file.parent) for file in home.rglob("manifest.json")]
    return {run.label: run for run in sorted(found, key=lambda run: run.label)}


def test_it_stands_in_the_table_of_the_federated_ones(home: Path) -> None:
    """It has numbers on own test data, and no number (rather than 0) for the global model."""
    runs = runs_in(home)
    study = study_of(list(runs.values()))
    row = study.run_row(runs["alone"])
    assert math.isnan(row["final_accuracy"])
    assert row["own_accuracy_mean"] == pytest.approx(runs["alone"].devices["own_accuracy"].mean())
    assert np.isfinite(runs["alone"].devices["own_accuracy"]).all()
    assert row["upload_bytes"] == 0
    assert study.budget is not None
    assert study.budget.at_s > 0
    assert math.isnan(row["time_to_target_s"])
    assert math.isnan(row["spent_s"])
    assert len([one for one in study_table(study).rows if "own test data" in one.title]) == 3
    manifest = runs["alone"].manifest
    assert manifest["adapter_sha256"] is None
    assert manifest["final_accuracy"] is None
    assert not (runs["alone"].path / "adapter").exists()


@long
def test_a_report_is_made_with_it(home: Path, tmp_path: Path) -> None:
    done = fedclock("report", home / "runs" / "small", "-o", tmp_path / "page", cwd=home)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"evaluation": {"every": 1}}, "evaluation.own_share must be above 0 under local-only"),
        ({"stop": {"rounds": 2, "target": 0.5}}, "stop.target must be left out under local-only"),
        ({"server_optimizer": {"kind": "fedadam"}}, "server_optimizer must be left out under loc"),
    ],
)
def test_what_asks_for_a_global_model_is_refused(
    changed: dict[str, Any], words: str, tmp_path: Path
) -> None:
    file = write(tmp_path, **changed)
    config = next(one for one in load_experiment(file) if one.label == "alone")
    with pytest.raises(ConfigError) as refused:
        build_world(config, "here")
    assert words in str(refused.value)
