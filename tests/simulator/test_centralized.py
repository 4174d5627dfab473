"""All data in one place is trained as by a plain loop, and stands beside a table's schedulers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from algorithms.checks import check_strategy
from algorithms.pacing import FedAsync, FedBuff, OverSelection, Pacing, SemiSynchronous, Synchronous
from algorithms.strategies.centralized import Centralized
from algorithms.strategies.fedlora import FedLoRA
from analysis.metrics.study import Study, study_of
from analysis.report.table import StudyTable, study_table
from analysis.runs.load import Run
from devices.cost.closed_form import ClosedFormCost
from devices.fleet.fleet import Device
from devices.tasks.classification import Classification
from devices.training.trainer import TorchTrainer
from devices.vocabulary.trainer import TrainingJob, TrainingResult
from simulator.config.experiment import ConfigError, load_experiment
from simulator.config.schema import LocalWork
from simulator.engine.server import simulate
from simulator.runs.preparation import prepare
from simulator.world.build import build_world
from simulator.world.one_place import in_one_place
from tests.command_line import fedclock
from tests.devices.training.plain_loop import assert_has_adapter, train_plainly
from tests.devices.training.test_texts import MAX_LENGTH, make_pairs, plain_inputs, plain_model
from tests.devices.training.tiny_task import make_config, make_trainer, save_model
from tests.simulator.small import DriftTrainer, Memory, make_device, make_federation
from tests.simulator.test_command import REAL
from tests.simulator.test_local_only import runs_in
from tests.torture import long

STRATEGIES = {
    "central": {"kind": "centralized", "rank": 2},
    "charged": {"kind": "centralized", "rank": 2, "profile": "jetson-nano-maxn"},
    "alone": {"kind": "local-only", "rank": 2},
    "fedlora": {"kind": "fedlora", "rank": 2},
}
PACINGS: dict[str, tuple[Pacing, int]] = {
    "synchronous": (Synchronous(cohort=3), 3),
    "over_selection": (OverSelection(cohort=3, factor=1.3), 3),
    "semi_synchronous": (SemiSynchronous(cohort=4, period_s=0.02), 4),
    "fedbuff": (FedBuff(concurrency=4, size=2), 2),
    "fedasync": (FedAsync(concurrency=3), 1),
}
"""Pacings, each with the number of updates that one of its rounds merges."""


class Recording:
    """Trains as another trainer does, and keeps the jobs and results."""

    def __init__(self, trainer: TorchTrainer) -> None:
        self._trainer = trainer
        self.jobs: list[TrainingJob] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        self.jobs += jobs
        return self._trainer.train(jobs)


def test_one_place_learns_as_a_plain_loop_on_all_data_does(tmp_path: Path) -> None:
    """Both take three rounds of the same batches and reach the same adapter to 1e-5 in fp32."""
    config = make_config(str(save_model(tmp_path / "bert", "bert")), max_length=MAX_LENGTH)
    trainer = Recording(make_trainer(config, Classification.of(make_pairs())))
    federation = make_federation(
        [make_device(k, num_examples=20 + k) for k in range(4)],
        strategy=Centralized(rank=4),
        pacing=Synchronous(cohort=2),
        trainer=trainer,
        rounds=3,
        learning_rate=config.learning_rate,
        model=trainer.spec,
        cost_model=ClosedFormCost(trainer.spec, MAX_LENGTH),
        local=LocalWork(batch_size=8, steps=2),
    )
    server = simulate(in_one_place(federation))
    first, *_ = trainer.jobs
    model = plain_model(trainer._trainer, first.broadcast.adapter, tmp_path / "start")
    for job in trainer.jobs:
        assert job.plan.local_steps == 2 * 2
        held = np.concatenate([device.examples for device in federation.world.fleet])
        np.testing.assert_array_equal(job.examples, np.sort(held))
        train_plainly(trainer._trainer, job, model, partial(plain_inputs, trainer._trainer))
    assert len(trainer.jobs) == server.state.version == 3
    assert_has_adapter(model, server.state.adapter)
    for name, values in server.state.adapter.head.items():
        kept, _, rest = name.partition(".")
        ours = dict(model.named_parameters())[
            f"base_model.model.{kept}.modules_to_save.default.{rest}"
        ]
        np.testing.assert_allclose(values, ours.detach().numpy(), atol=1e-5)


def test_a_federation_of_one_device_that_loses_nothing_is_the_same() -> None:
    ends = []
    for strategy, put in ((Centralized(rank=2), in_one_place), (FedLoRA(rank=2), lambda one: one)):
        fleet = [make_device(0)]
        federation = make_federation(fleet, strategy=strategy, trainer=DriftTrainer(), rounds=3)
        ends.append(simulate(put(federation)).state.adapter.digest)
    assert ends[0] == ends[1]


@pytest.mark.parametrize(("pacing", "num_updates"), PACINGS.values(), ids=PACINGS)
def test_a_round_has_the_steps_of_all_updates_that_it_would_merge(
    pacing: Pacing, num_updates: int
) -> None:
    fleet = [make_device(k, flops_per_s=4e9 / 2**k) for k in range(5)]
    trainer, log = DriftTrainer(), Memory()
    given: dict[str, Any] = {"strategy": Centralized(rank=2), "pacing": pacing, "rounds": 3}
    simulate(in_one_place(make_federation(fleet, trainer=trainer, **given)), log)
    assert [job.plan.local_steps for job in trainer.jobs] == [3 * num_updates] * 3
    assert [record.num_aggregated for record in log.rounds] == [0, 1, 1, 1]
    assert not sum(record.download_bytes + record.upload_bytes for record in log.rounds)


def test_epochs_are_those_of_devices_as_they_are_on_average() -> None:
    fleet = [make_device(0), make_device(1)]
    shards = [np.arange(8), np.arange(8, 40)]
    fleet = [replace(one, shard=partial(lambda k: shards[k], k)) for k, one in enumerate(fleet)]
    trainer = DriftTrainer()
    federation = make_federation(
        fleet,
        strategy=Centralized(rank=2),
        trainer=trainer,
        rounds=1,
        local=LocalWork(batch_size=4, epochs=1.0),
    )
    simulate(in_one_place(federation))
    assert trainer.jobs[0].plan.local_steps == 2 * (2 + 8) // 2


def test_how_the_data_were_divided_changes_nothing() -> None:
    ends = set()
    for order in (np.arange(64), np.random.default_rng(0).permutation(64)):
        fleet: list[Device] = [
            replace(make_device(k), shard=partial(lambda own: own, order[32 * k : 32 * (k + 1)]))
            for k in range(2)
        ]
        trainer = DriftTrainer()
        federation = make_federation(fleet, strategy=Centralized(rank=2), trainer=trainer)
        simulate(in_one_place(federation))
        ends.add(trainer.jobs[0].examples.tobytes())
    assert len(ends) == 1


def test_it_keeps_the_contract() -> None:
    check_strategy(Centralized(rank=3))


def write(folder: Path, **changed: Any) -> Path:
    file = folder / "place.yaml"
    share = {"every": 1, "examples": 40, "own_share": 0.25}
    config = {**REAL, "evaluation": share, "strategies": STRATEGIES, **changed}
    file.write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
    return file


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("place")
    done = fedclock("run", write(home), "--workers", "1", "--no-cache", cwd=home)
    assert done.returncode == 0, done.stderr
    return home


def cells(table: StudyTable, title: str) -> list[str]:
    (row,) = (row for row in table.rows if row.title.startswith(title))
    return [cell.text for cell in row.cells]


def test_it_stands_in_the_table_of_the_federated_ones(home: Path) -> None:
    """It meets the same conditions; what needs a clock is empty unless a device is charged."""
    runs = runs_in(home)
    study = study_of([runs[label] for label in STRATEGIES])
    assert len({run.manifest["conditions_hash"] for run in runs.values()}) == 1
    central, charged = (study.run_row(runs[label]) for label in ("central", "charged"))
    assert central["final_accuracy"] == charged["final_accuracy"] > 0
    for column in ("simulated_s", "energy_j", "waiting_s", "accuracy_area"):
        assert math.isnan(central[column]), column
        assert math.isfinite(charged[column]), column
    assert math.isnan(central["accuracy_at_time"])
    assert charged["simulated_s"] > 0 < charged["energy_j"]
    assert central["upload_bytes"] == central["download_bytes"] == charged["upload_bytes"] == 0
    assert study.baseline == "fedlora"
    assert study.budget is not None
    assert study.budget.transfer_bytes > 0  # the budget is that of the schedulers alone
    table = study_table(study)
    assert cells(table, "Simulated time")[0] == "–"
    assert cells(table, "Fairness of participation")[:2] == ["–", "–"]
    own = runs["central"].devices["own_accuracy"]
    assert central["own_accuracy_mean"] == pytest.approx(own.mean())
    manifests = [runs[label].manifest for label in ("central", "charged")]
    assert manifests[0]["adapter_sha256"] == manifests[1]["adapter_sha256"] is not None
    assert (runs["central"].path / "adapter" / "adapter_config.json").is_file()


def test_a_reference_chooses_no_target_and_is_never_the_best(home: Path) -> None:
    runs = runs_in(home)

    def at(run: Run, value: float, seed: int) -> Run:
        rounds = run.rounds.assign(accuracy=[0.05, *[value + 0.001 * seed] * 3])
        return replace(run, rounds=rounds, manifest={**run.manifest, "seed": seed})

    values = {"central": 0.9, "fedlora": 0.5, "charged": 0.7}
    played = [at(runs[label], value, seed) for label, value in values.items() for seed in range(5)]
    other = [replace(at(runs["fedlora"], 0.3, seed), label="slow") for seed in range(5)]
    study: Study = study_of([*played, *other], smoothing=1)
    assert study.target.value == pytest.approx(0.3)
    (final,) = (row for row in study_table(study).rows if row.title.startswith("Final accuracy"))
    assert [cell.is_best for cell in final.cells] == [False, True, False, False]
    assert study_of(played, baseline="central").baseline == "central"  # if named explicitly


@long
@pytest.mark.parametrize("labels", [list(STRATEGIES), ["central"], ["central", "alone"]])
def test_a_report_is_made_with_it(home: Path, tmp_path: Path, labels: list[str]) -> None:
    folders = [runs_in(home)[label].path for label in labels]
    done = fedclock("report", *folders, "-o", tmp_path / "page", cwd=home)
    assert done.returncode == 0, done.stderr
    drawn = {path.stem for path in (tmp_path / "page" / "figures").glob("*.csv")}
    assert "accuracy-rounds" in drawn
    assert ("gantt" in drawn) == (labels != ["central"])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"server_optimizer": {"kind": "fedadam"}}, "server_optimizer must be left out under cent"),
        (
            {"local": {"batch_size": 4, "steps": 400_000}},
            "strategy: centralized makes the steps of a whole round in one place, which must be at "
            "most 1000000, got 1200000",
        ),
    ],
)
def test_what_one_place_cannot_have_is_refused(
    changed: dict[str, Any], words: str, tmp_path: Path
) -> None:
    file = write(tmp_path, **changed)
    config = next(one for one in load_experiment(file) if one.label == "central")
    with pytest.raises(ConfigError) as refused:
        build_world(config, "here")
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"profile": "jetson-nano-maxx"},
            "central.profile must be .*: a power mode .* one of maxn, 5w",
        ),
        ({"profile": "boards.toml:mine"}, "central.profile must be a device of our catalog"),
        ({"depth": "common"}, "depth must be"),
    ],
)
def test_wrong_options_are_said_as_those_of_any_strategy(
    options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    strategies = {"central": {**STRATEGIES["central"], **options}}
    with pytest.raises(ConfigError, match=words):
        load_experiment(write(tmp_path, strategies=strategies))


def test_a_depth_that_the_model_has_not_is_said_before_the_run(tmp_path: Path) -> None:
    strategies = {"central": {**STRATEGIES["central"], "depth": 9}}
    (config,) = load_experiment(write(tmp_path, strategies=strategies))
    with pytest.raises(ConfigError, match=r"depth must be in \[1, 2\], got 9"):
        prepare(config, tmp_path / "run", "here")
