"""Nothing is part of the key of a kept result but what reaches that result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import api
from devices.options import TrainingOptions
from devices.vocabulary.controls import Controls, zeros_like
from devices.vocabulary.plan import Broadcast, TermGrid, TrainingPlan
from devices.vocabulary.trainer import HostNames, TrainingJob
from simulator.config.experiment import read_experiment
from simulator.config.schema import EvaluationConfig
from simulator.config.task import TaskConfig
from simulator.workers.context import Context, context_of
from simulator.workers.kept_results import Checkpoint, CheckpointedTrainer
from simulator.world.build import build_world
from tests.simulator.own_data import write_data
from tests.simulator.small import DriftTrainer, one_context, tiny_model
from tests.simulator.test_result_cache import CONFIG

HOST = HostNames("cpu", "fp32")
NOTHING: set[str] = set()
TRAINING = {"training"}
EVALUATION = {"evaluation"}
ALL = {"training", "evaluation", "salience"}

REACHES: list[tuple[str, Any, set[str]]] = [
    ("training.learning_rate", 1e-4, TRAINING),
    ("training.weight_decay", 0.1, TRAINING),
    ("training.optimizer", "adafactor", TRAINING),
    ("training.momentum", 0.9, NOTHING),  # the default of SGD
    ("training.momentum", 0.5, TRAINING),
    ("training.clip_norm", 1.0, TRAINING),
    ("training.schedule", {"kind": "linear"}, NOTHING),
    ("training.label_smoothing", 0.1, {"training", "salience"}),
    ("training.rslora", True, NOTHING),
    ("training.dtype", "auto", NOTHING),
    ("training.compute", "cpu", NOTHING),
    ("training.attention", "sdpa", ALL),
    ("training.batches", "lengths", TRAINING),
    ("training.stack", 4, NOTHING),
    ("training.max_loss", 5.0, TRAINING),
    ("training.when_diverged", "drop", NOTHING),
    ("evaluation.every", 7, NOTHING),
    ("evaluation.examples", 10, EVALUATION),
    ("evaluation.own_share", 0.5, NOTHING),
    ("task.targets", ["query"], ALL),
    ("task.max_length", 12, ALL),
    ("seed", 5, NOTHING),
    ("stop", {"rounds": 9}, NOTHING),
    ("local", {"batch_size": 2, "steps": 9}, NOTHING),
    ("pacing", {"kind": "synchronous", "cohort": 1}, NOTHING),
    ("shards", {"kind": "iid"}, NOTHING),
    ("strategy", {"kind": "fedquad", "rank": 4}, NOTHING),
]
"""A key, another value, and the kinds of results that this reaches beside their arguments."""

IN_FILES = {
    *("kind", "model", "revision", "data", "data_config", "data_revision"),
    *("train_split", "test_split", "columns", "template", "packing", "answer_tokens"),
}
"""The keys of a task that stand for files, or that other tasks have: they have tests of their own.
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("context") / "data")


def context(changes: dict[str, Any], host: HostNames = HOST) -> Context:
    """Return the context of the tests' config with other values of these keys."""
    config = {**CONFIG, "evaluation": {"examples": 16}}
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    (read,) = read_experiment(config, overrides, Path("x.yaml"))
    return context_of(read, build_world(read, "x.yaml"), host)


def reached(one: Context, other: Context) -> set[str]:
    """Return the kinds of results whose keys differ."""
    return {name for name in Context._fields if getattr(one, name) != getattr(other, name)}


@pytest.mark.parametrize(
    ("key", "value", "reaches"), REACHES, ids=[f"{key}={value}" for key, value, _ in REACHES]
)
def test_a_key_of_the_config_is_part_of_what_it_reaches(
    data: Path, key: str, value: Any, reaches: set[str]
) -> None:
    common: dict[str, Any] = {"task.data": str(data)}
    if key == "training.momentum":
        common |= {"training.optimizer": "sgd"}
    assert reached(context(common), context({**common, key: value})) == reaches


def test_every_option_of_training_task_and_evaluation_is_tried() -> None:
    tried = {key for key, _, _ in REACHES}
    wanted = {f"training.{option.name}" for option in fields(TrainingOptions)}
    wanted |= {f"evaluation.{option.name}" for option in fields(EvaluationConfig)}
    wanted |= {
        f"task.{option.name}" for option in fields(TaskConfig) if option.name not in IN_FILES
    }
    assert wanted <= tried


@pytest.mark.parametrize("change", [{"packing": "packed"}, {"template": "{prompt}: "}])
def test_how_texts_become_tokens_reaches_every_result(data: Path, change: dict[str, str]) -> None:
    config = {**CONFIG, "evaluation": {"examples": 16}}
    (read,) = read_experiment(config, [f"task.data={data}"], Path("x.yaml"))
    world = build_world(read, "x.yaml")
    other = replace(read, task=replace(read.task, **change))
    assert reached(context_of(read, world, HOST), context_of(other, world, HOST)) == ALL


def test_another_host_reaches_every_result(data: Path) -> None:
    given = {"task.data": str(data)}
    assert reached(context(given), context(given, HostNames("cpu", "bf16"))) == ALL


def more_examples_than_there_are(folder: Path) -> dict[str, Any]:
    return {"task.data": str(folder), "evaluation.examples": 17}


def other_tests(folder: Path) -> dict[str, Any]:
    text = (folder / "test.csv").read_text("utf-8")
    (folder / "test.csv").write_text(text.replace("number 3", "number 33"), "utf-8")
    return {"task.data": str(folder)}


def other_texts(folder: Path) -> dict[str, Any]:
    text = (folder / "train.csv").read_text("utf-8")
    (folder / "train.csv").write_text(text.replace("number 3,", "number 333,"), "utf-8")
    return {"task.data": str(folder)}


def other_format(folder: Path) -> dict[str, Any]:
    for split in ("train", "test"):
        file = folder / f"{split}.csv"
        rows = [line.split(",") for line in file.read_text("utf-8").splitlines()[1:]]
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), "utf-8")
        file.unlink()
    return {"task.data": str(folder)}


def other_names_of_columns(folder: Path) -> dict[str, Any]:
    for split in ("train", "test"):
        file = folder / f"{split}.csv"
        file.write_text(file.read_text("utf-8").replace("text,label", "body,class"), "utf-8")
    return {"task.data": str(folder), "task.columns": {"text": "body", "label": "class"}}


def clients_beside_them(folder: Path) -> dict[str, Any]:
    for split in ("train", "test"):
        file = folder / f"{split}.csv"
        lines = file.read_text("utf-8").splitlines()
        of = ["client", *(f"c{k % 4}" for k in range(len(lines) - 1))]
        file.write_text("\n".join(map(",".join, zip(lines, of, strict=True))), "utf-8")
    shards = {"kind": "natural", "min_examples": 1}
    return {"task.data": str(folder), "shards": shards, "task.columns": {"client": "client"}}


@pytest.mark.parametrize(
    ("change", "reaches"),
    [
        (more_examples_than_there_are, NOTHING),
        (other_tests, EVALUATION),
        (other_texts, ALL),
        (other_format, NOTHING),
        (other_names_of_columns, NOTHING),
        (clients_beside_them, NOTHING),
    ],
)
def test_texts_count_and_not_the_files_that_they_were_read_from(
    data: Path, tmp_path: Path, change: Callable[[Path], dict[str, Any]], reaches: set[str]
) -> None:
    shutil.copytree(data, tmp_path / "other")
    changed = context(change(tmp_path / "other"))
    assert reached(context({"task.data": str(data)}), changed) == reaches


def job(terms: TermGrid, **changes: Any) -> TrainingJob:
    model = tiny_model()
    blocks = model.num_blocks
    plan = TrainingPlan(0, terms, ("fp32",) * blocks, (32,) * blocks, 1, 4)
    adapter = model.initial_adapter(2, 4.0, np.random.default_rng(0))
    return TrainingJob(replace(plan, **changes), Broadcast(0, adapter), np.arange(8), seed=1)


def corrected(plain: TrainingJob) -> TrainingJob:
    start = plain.broadcast.adapter
    controls = Controls(start, zeros_like(start))
    return replace(plain, broadcast=replace(plain.broadcast, controls=controls))


@cache
def plain_grid() -> TermGrid:
    return TermGrid.top_blocks(tiny_model().grid_shape(2), depth=2)


def grid(**changes: Any) -> TermGrid:
    return replace(plain_grid(), **changes)


@pytest.mark.parametrize(
    ("other", "is_kept"),
    [
        (lambda: job(grid(upload_bits=plain_grid().upload_bits // 8)), True),
        (lambda: job(grid(head_bits=8)), True),
        (lambda: job(grid(use="fresh")), True),
        (lambda: job(grid(), missed_ranks=np.ones((3, 2), dtype=np.int64)), True),
        (lambda: job(grid(), micro_batch=4), True),  # as large as the whole batch
        (lambda: replace(job(grid()), broadcast=Broadcast(7, job(grid()).broadcast.adapter)), True),
        (lambda: job(grid(use="b_only")), False),
        (lambda: job(grid(), micro_batch=2), False),
        (lambda: job(grid(), proximal_mu=0.1), False),
        (lambda: job(grid(), activation_bits=(8, 8, 8)), False),
        (lambda: job(TermGrid.top_blocks(tiny_model().grid_shape(2), depth=1)), False),
        (lambda: replace(job(grid()), seed=2), False),
        (lambda: replace(job(grid()), rate_share=0.5), False),
        (lambda: replace(job(grid()), stack=2), False),
        (lambda: corrected(job(grid())), False),
    ],
)
def test_a_job_finds_what_was_trained_if_only_what_is_sent_differs(
    tmp_path: Path, other: Callable[[], TrainingJob], is_kept: bool
) -> None:
    trainer = DriftTrainer()
    kept = CheckpointedTrainer(trainer, Checkpoint(tmp_path, pytest.fail), one_context())
    kept.train([job(grid())])
    kept.train([other()])
    assert len(trainer.jobs) == 2 - is_kept


@pytest.mark.parametrize("change", [{"examples": 10}, {"every": 1}])
def test_a_run_that_is_tested_otherwise_trains_nothing(
    tmp_path: Path, data: Path, change: dict[str, int]
) -> None:
    def savings(evaluation: dict[str, int]) -> dict[str, int]:
        config = {**CONFIG, "task": {**CONFIG["task"], "data": str(data)}, "evaluation": evaluation}
        result = api.run(config, output=tmp_path / "runs", workers=1, cache=str(tmp_path / "kept"))
        (row,) = result.savings.to_dict("records")
        return {str(name): int(row[name]) for name in ("num_trainings", "num_trainings_reused")}

    first = savings(CONFIG["evaluation"])
    again = savings({**CONFIG["evaluation"], **change})
    assert first == {"num_trainings": 4, "num_trainings_reused": 0}
    assert again == {"num_trainings": 4, "num_trainings_reused": 4}
