"""Every strategy trains every task for one round, from the config to the adapter that is
exported."""

from __future__ import annotations

import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from rich.console import Console
from safetensors.numpy import load_file
from typer.testing import CliRunner

from algorithms.registry import STRATEGIES
from analysis.commands.main import app
from devices.tasks.registry import TASKS
from devices.vocabulary.trainer import TrainingError
from simulator.config.experiment import ConfigError, load_experiment
from simulator.log.progress import PlainReporter
from simulator.log.records import RoundRecord
from simulator.runs.preparation import prepare
from simulator.runs.run import run
from simulator.workers.result_cache import ResultCache, open_cache
from simulator.workers.trainers import Trainers
from simulator.world.build import build_world
from tests.devices.training.tiny_task import make_dataset, save_model
from tests.simulator.test_golden import CONFIG
from tests.simulator.test_language_model import run_all
from tests.torture import LONG, SHARE, some

LANGUAGE = ("causal-lm", "instructions", "choice")
"""The tasks that keep the output layer of a language model."""
WITH_GLOBAL = [kind for kind, strategy in STRATEGIES.items() if strategy.has_global_model]
PLAIN_SGD = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.1}
"""The one recipe that every strategy can be trained by."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a random BERT, a random Llama, and examples that hold what every task reads."""
    home = tmp_path_factory.mktemp("home")
    save_model(home / "bert", "bert")
    save_model(home / "llama", "llama", language=True)
    data = make_dataset(120, 30).data
    (home / "data").mkdir()
    for split in ("train", "test"):
        texts, labels = (data[split][column] for column in ("text", "label"))  # type: ignore[index]
        words = [text.split() for text in texts]
        rows = (
            {
                "text": text,
                "pair": texts[k - 1],
                "label": label,
                "score": 0.5 * "abcd".index(label),
                "prompt": " ".join(words[k][:2]),
                "answer": words[k][2],
                "choices": sorted({words[k][2], "word0", "word1"}),
                "client": f"user{k % 6}",
            }
            for k, (text, label) in enumerate(zip(texts, labels, strict=True))
        )
        lines = "\n".join(map(json.dumps, rows))
        (home / "data" / f"{split}.jsonl").write_text(lines, "utf-8")
    return home


def experiment(home: Path, kind: str, **changed: Any) -> Path:
    task = TASKS[kind]
    is_language = kind in LANGUAGE
    own = [*task.columns, *task.optional, "client"]
    config: dict[str, Any] = {
        **CONFIG,
        "name": kind,
        "task": {
            "kind": kind,
            "model": str(home / ("llama" if is_language else "bert")),
            "targets": ["q_proj", "v_proj"] if is_language else ["query", "value"],
            "data": str(home / "data"),
            "columns": {name: name for name in own},
            "max_length": 24,
        },
        "shards": {"kind": "natural"},
        "local": {"batch_size": 4, "steps": 2},
        "training": {**PLAIN_SGD, "dtype": "fp32", "stack": 2},
        "evaluation": {"every": 1, "examples": 12},
        "fleet": {
            **CONFIG["fleet"],
            "memory_share": 0.5,
            "devices": [{"profile": "raspberry-pi-4-2gb", "link": "5g", "count": 4}],
        },
        "pacing": {"kind": "synchronous", "cohort": 3},
        "stop": {"rounds": 1},
        "strategies": {name: {"kind": name, "rank": 4} for name in WITH_GLOBAL},
        **changed,
    }
    file = home / f"{kind}.yaml"
    file.write_text(yaml.safe_dump(config), "utf-8")
    return file


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=() if k == "classification" else LONG) for k in TASKS],
)
def test_every_strategy_trains_the_task(home: Path, tmp_path: Path, kind: str) -> None:
    names = WITH_GLOBAL if SHARE else WITH_GLOBAL[::5]
    strategies = {name: {"kind": name, "rank": 4} for name in names}
    folders = run_all(experiment(home, kind, strategies=strategies), tmp_path)
    assert len(folders) == len(names)
    for folder in folders:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        assert manifest["status"] == "done", folder
        metrics = [metric.name for metric in TASKS[kind].metrics]
        assert [metric["name"] for metric in manifest["task"]["metrics"]] == metrics
        rounds = pd.read_parquet(folder / "rounds.parquet")
        assert rounds[metrics].map(math.isfinite).all(axis=None), folder
        assert rounds["loss"].nunique() == 2, folder  # training changed the model
        config = json.loads((folder / "adapter" / "adapter_config.json").read_text("utf-8"))
        assert config["task_type"] == ("CAUSAL_LM" if kind in LANGUAGE else "SEQ_CLS")
        tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
        assert any("lora_" not in name for name in tensors) == (kind not in LANGUAGE)


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=() if k in ("classification", "causal-lm") else LONG) for k in TASKS],
)
def test_devices_train_the_task_by_themselves_too(home: Path, tmp_path: Path, kind: str) -> None:
    """The global columns stay empty, and each device's model is tested on the device's own data."""
    file = experiment(
        home,
        kind,
        strategies={"local-only": {"kind": "local-only", "rank": 4}},
        evaluation={"every": 1, "examples": 12, "own_share": 0.3},
    )
    (folder,) = run_all(file, tmp_path)
    names = [metric.name for metric in TASKS[kind].metrics]
    rounds = pd.read_parquet(folder / "rounds.parquet")
    assert rounds[names].isna().all(axis=None)
    assert not rounds[["download_bytes", "upload_bytes"]].any(axis=None)
    devices = pd.read_parquet(folder / "devices.parquet")
    assert devices["own_loss"].map(math.isfinite).all()
    assert not (folder / "adapter").exists()


PACINGS: list[dict[str, Any]] = [
    {"kind": "synchronous", "cohort": 3},
    {"kind": "over_selection", "cohort": 2, "factor": 1.5},
    {"kind": "semi_synchronous", "cohort": 3, "period_s": 0.5},
    {"kind": "fedbuff", "concurrency": 3, "size": 2},
    {"kind": "fedasync", "concurrency": 3},
]


class Breaks(PlainReporter):
    """This reporter ends the run as its second round closes, as whatever ends a process would."""

    def round(self, record: RoundRecord) -> None:
        if record.round == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("kind", "pacing"), some(itertools.product(TASKS, PACINGS), 8))
def test_the_task_is_packed_cut_off_and_found_again_under_every_pacing(
    home: Path, tmp_path: Path, kind: str, pacing: dict[str, Any]
) -> None:
    """Weights, activations, uploads and head are packed; a run that broke off ends as the whole."""
    file = experiment(
        home,
        kind,
        pacing=pacing,
        local={"batch_size": 4, "steps": 2, "weight_format": "int8", "upload_bits": 8,
               "head_bits": 8},
        strategies={"packed": {"kind": "fedlora", "rank": 4, "activation_bits": 8}},
        stop={"rounds": 3},
        evaluation={"every": 1, "examples": 4},
    )  # fmt: skip
    (config,) = load_experiment(file)
    cache = open_cache(tmp_path / "cache", 1.0)
    plain, breaks = (cls(Console(file=io.StringIO())) for cls in (PlainReporter, Breaks))

    def done(name: str, cache: ResultCache | None, report: PlainReporter = plain) -> Path:
        with Trainers(1, cache) as trainers:
            return run(
                prepare(config, tmp_path / name, str(file)), trainers=trainers, report=report
            )

    whole, found = done("whole", cache), done("found", cache)
    with pytest.raises(KeyboardInterrupt):
        done("cut", None, breaks)
    resumed = done("cut", None)
    manifests = [
        json.loads((folder / "manifest.json").read_text("utf-8"))
        for folder in (whole, found, resumed)
    ]
    asked = manifests[0]["num_trainings"]
    reused = [manifest["num_trainings_reused"] for manifest in manifests]
    assert reused[0] < reused[1] == asked
    assert 0 < reused[2] < asked
    assert len({manifest["adapter_sha256"] for manifest in manifests}) == 1
    for name in ("events.jsonl", "rounds.parquet", "clients.parquet"):
        assert len({(folder / name).read_bytes() for folder in (whole, found, resumed)}) == 1
    losses = pd.read_parquet(whole / "rounds.parquet")["loss"]
    assert losses.map(math.isfinite).all()
    assert losses.nunique() == len(losses)  # each round changed the model


@pytest.mark.parametrize(
    ("kind", "task", "words"),
    [
        ("classification", {"template": "{prompt}!"}, "template must be left out for classific"),
        ("instructions", {"template": "no place"}, "task.template must be chat, or a text of at"),
        ("instructions", {"template": "chat"}, "has no chat template, got chat"),
        ("instructions", {"columns": {"prompt": "score"}}, "score must be a string, got"),
        ("regression", {"columns": {"score": "label"}}, "score must be a number below"),
    ],
)
def test_what_does_not_fit_a_task_is_said_in_words(
    home: Path, kind: str, task: dict[str, Any], words: str
) -> None:
    whole = yaml.safe_load(experiment(home, kind).read_text("utf-8"))
    columns = whole["task"]["columns"] | task.get("columns", {})
    changed = {**whole["task"], **task, "columns": columns}
    file = experiment(home, kind, task=changed)
    with pytest.raises((ConfigError, TrainingError)) as error:
        run_all(file, home / "out")
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("kind", "shards", "sizes"),
    [
        ("causal-lm", {"kind": "few-groups", "group_by": "label", "per_device": 1}, None),
        ("causal-lm", {"kind": "dirichlet", "group_by": "client", "min_examples": 5}, None),
        ("regression", {"kind": "sizes", "sizes": [10, 20, 30, 5]}, [10, 20, 30, 5]),
        ("choice", {"kind": "log-normal", "min_examples": 4}, None),
    ],
)
def test_shards_of_every_kind_are_had_for_tasks_without_classes(
    home: Path, kind: str, shards: dict[str, Any], sizes: list[int] | None
) -> None:
    file = experiment(home, kind, shards=shards, strategies={"fedlora": {"kind": "fedlora"}})
    if "group_by" in shards:
        whole = yaml.safe_load(file.read_text("utf-8"))
        whole["task"]["columns"][shards["group_by"]] = shards["group_by"]
        file.write_text(yaml.safe_dump(whole), "utf-8")
    (config,) = load_experiment(file)
    world = build_world(config, str(file))
    found = world.fleet.shards.sizes().tolist()
    assert len(found) == 4
    assert min(found) >= shards.get("min_examples", 1)
    assert sizes in (None, found)
    if shards["kind"] == "few-groups":
        labels = world.task.data.train["label"]
        assert all(len({labels[k] for k in world.fleet.shards[d]}) == 1 for d in range(4))
    shown = CliRunner().invoke(app, ["shards", str(file), "--each"])
    assert shown.exit_code == 0
    assert str(sum(found)) in shown.output


@pytest.mark.parametrize(
    ("shards", "words"),
    [
        ({"kind": "few-groups"}, "kind must be iid, natural, log-normal or sizes for causal-lm"),
        ({"kind": "sizes", "sizes": [3]}, "sizes must be one for each of the 4 devices, got 1"),
        ({"kind": "log-normal", "min_examples": 100}, "at least 400 training examples"),
        ({"kind": "dirichlet", "group_by": "nowhere"}, "nowhere must be a string"),
    ],
)
def test_shards_that_cannot_be_are_said_in_words(
    home: Path, shards: dict[str, Any], words: str
) -> None:
    file = experiment(home, "causal-lm", shards=shards)
    with pytest.raises(ConfigError, match=words):
        load_and_build(file)


def load_and_build(file: Path) -> None:
    build_world(load_experiment(file)[0], str(file))
