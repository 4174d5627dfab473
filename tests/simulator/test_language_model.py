"""A language model is fine-tuned by a federation, from its config to its run folder."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from rich.console import Console
from safetensors.numpy import load_file, save_file

from algorithms.registry import STRATEGIES as STRATEGIES_OF_ALL
from analysis.figures import figures_of, style
from analysis.metrics.definitions import METRICS
from analysis.metrics.study import Study, study_of
from analysis.report.table import study_table
from analysis.runs.load import load_run
from devices.tasks.token_losses import MAX_PERPLEXITY
from simulator.config.experiment import ConfigError, load_experiment
from simulator.log.progress import PlainReporter
from simulator.runs.preparation import prepare_all
from simulator.runs.run import run
from simulator.workers.trainers import Trainers
from tests.devices.training.tiny_task import make_dataset, save_model
from tests.simulator.test_golden import CONFIG
from tests.torture import LONG, long

STRATEGIES: dict[str, dict[str, Any]] = {
    "fedlora": {"kind": "fedlora", "rank": 4},
    "fedquad": {"kind": "fedquad", "rank": 4},
    "haflq": {"kind": "haflq", "rank": 4},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a random Llama, and 30 texts of each of eight clients."""
    home = tmp_path_factory.mktemp("home")
    save_model(home / "model", "llama", language=True)
    data = make_dataset().data
    (home / "data").mkdir()
    for split in ("train", "test"):
        rows = (
            {"body": text, "user": f"user{k % 8}", "likes": k}
            for k, text in enumerate(data[split]["text"])  # type: ignore[index]
        )
        lines = "\n".join(map(json.dumps, rows))
        (home / "data" / f"{split}.jsonl").write_text(lines, "utf-8")
    return home


def experiment(home: Path, name: str, **changed: Any) -> Path:
    config = {
        **CONFIG,
        "name": name,
        "task": {
            "kind": "causal-lm",
            "model": str(home / "model"),
            "targets": ["q_proj", "v_proj"],
            "data": str(home / "data"),
            "columns": {"text": "body", "client": "user"},
            "max_length": 16,
        },
        "shards": {"kind": "natural"},
        "local": {"batch_size": 8, "steps": 6},
        "training": {"learning_rate": 1.0e-2, "dtype": "fp32"},
        "evaluation": {"every": 2, "examples": 60},
        "fleet": {**CONFIG["fleet"], "memory_share": 0.5},
        "pacing": {"kind": "synchronous", "cohort": 5},
        "stop": {"rounds": 4},
        "strategies": STRATEGIES,
    }
    config["fleet"]["devices"] = [{"profile": "raspberry-pi-4-2gb", "link": "5g", "count": 6}]
    file = home / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**config, **changed}), "utf-8")
    return file


def run_all(file: Path, output: Path) -> list[Path]:
    """Run every strategy of an experiment in this process, and return the run folders."""
    report = PlainReporter(Console(quiet=True))
    prepared = prepare_all(load_experiment(file), file, output)
    with Trainers(1) as trainers:
        return [run(one, trainers=trainers, report=report) for one in prepared]


@long
def test_perplexity_falls_under_three_strategies(home: Path, tmp_path: Path) -> None:
    folders = run_all(experiment(home, "falls"), tmp_path)
    assert len(folders) == len(STRATEGIES)
    study = study_of([load_run(folder) for folder in folders])
    by_run = {str(folder): row for folder, row in zip(folders, rows_of(study), strict=True)}
    for folder in folders:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        assert manifest["task"]["kind"] == "causal-lm"
        assert manifest["task"]["metrics"][0] == {
            "name": "perplexity", "unit": "", "better": "lower",
        }  # fmt: skip
        rounds = pd.read_parquet(folder / "rounds.parquet")
        evaluated = rounds[rounds["perplexity"].notna()]
        assert list(evaluated["round"]) == [0, 2, 4]
        first, last = evaluated["perplexity"].iloc[0], evaluated["perplexity"].iloc[-1]
        assert last < 0.95 * first
        assert manifest["final_perplexity"] == pytest.approx(last)
        assert by_run[str(folder)]["final_perplexity"] == pytest.approx(last)
        assert by_run[str(folder)]["best_perplexity"] == evaluated["perplexity"].min()
        assert evaluated["loss"].map(math.exp).tolist() == pytest.approx(
            evaluated["perplexity"].tolist()
        )
        assert evaluated["token_accuracy"].between(0, 1).all()
        adapter = json.loads((folder / "adapter" / "adapter_config.json").read_text("utf-8"))
        assert adapter["task_type"] == "CAUSAL_LM"
        devices = pd.read_parquet(folder / "devices.parquet")
        assert devices["num_examples"].tolist() == [30] * 6


def test_a_perplexity_beyond_all_bounds_is_a_number_that_tables_can_hold(
    home: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(home, tmp_path / "home")
    weights = load_file(broken / "model" / "model.safetensors")
    weights["lm_head.weight"] *= 20_000  # a loss of tens of thousands of nats, whose exp overflows
    save_file(weights, broken / "model" / "model.safetensors", metadata={"format": "pt"})
    training = {"learning_rate": 1.0e-2, "dtype": "fp32", "when_diverged": "drop"}
    some = {label: STRATEGIES[label] for label in ("fedlora", "fedquad")}
    file = experiment(broken, "beyond", training=training, strategies=some, stop={"rounds": 1})
    study = study_of([load_run(path) for path in run_all(file, tmp_path / "runs")])
    assert (study.per_run["final_perplexity"] == MAX_PERPLEXITY).all()
    change = study.differences.set_index("metric").loc["final_perplexity"]
    assert change["value"] == 1.0
    row = next(row for row in study_table(study).rows if row.title == "Final perplexity")
    assert [cell.text for cell in row.cells] == ["1.00e+100"] * 2


@long
def test_tables_judge_language_models_by_perplexity(home: Path, tmp_path: Path) -> None:
    folders = run_all(experiment(home, "table", evaluation={"every": 1, "examples": 60}), tmp_path)
    runs = [load_run(folder) for folder in folders]
    study = study_of(runs)
    assert study.metric.name == "perplexity"
    best = {run.label: run.rounds["perplexity"].rolling(3).mean().min() for run in runs}
    starts = [run.rounds["perplexity"].iloc[0] for run in runs]
    target = study.target.value
    assert target is not None
    assert max(best.values()) <= target < min(starts)  # every run reached it, none began there
    assert study.per_run["is_reached"].all()
    assert study.per_run["smoothed_best"].tolist() == list(best.values())
    titles = [row.title.partition(" (")[0] for row in study_table(study).rows]
    assert {
        "Final perplexity", "Best perplexity", "Mean perplexity over time", f"Time to perplexity "
        f"{target:g}", "Final token accuracy",
    } <= set(titles)  # fmt: skip
    assert "Final accuracy" not in titles
    better = {metric.column: metric.better for metric in METRICS}
    assert better["perplexity_area"] == better["perplexity_at_time"] == "lower"
    assert better["final_token_accuracy"] == "higher"
    again = study_of(runs, target=min(best.values()))  # only the best run reached this
    assert again.per_run["is_reached"].sum() == 1


@long
def test_figures_of_language_models_draw_perplexity(home: Path, tmp_path: Path) -> None:
    file = experiment(home, "drawn", evaluation={"every": 1, "examples": 60})
    study = study_of([load_run(folder) for folder in run_all(file, tmp_path)])
    specs = {spec.name: spec for spec in figures_of(study.metric)}
    assert not {"accuracy", "accuracy-rounds"} & set(specs)
    for name in ("perplexity", "perplexity-rounds", "perplexity-traffic", "perplexity-energy"):
        frame = specs[name].frame(study)
        assert frame["perplexity"].notna().all()
        assert set(frame["target"]) == {study.target.value}
        (axes,) = specs[name].draw(frame, style.IEEE).axes
        assert axes.get_ylabel() == "Test perplexity"
        assert f"target {study.target.value:g}" in {text.get_text() for text in axes.texts}
    bars = specs["time-to-target"]
    (axes,) = bars.draw(bars.frame(study), style.IEEE).axes
    assert axes.get_xlabel().startswith(f"Simulated time to perplexity {study.target.value:g} (")
    changes = specs["ablation"].frame(study).set_index("label")
    last = study.per_run.set_index("variant")["final_perplexity"]
    assert changes.loc["haflq", "perplexity_percent"] == pytest.approx(
        100 * (last["haflq"] / last["fedlora"] - 1)
    )
    first = specs["ablation"].draw(changes.reset_index(), style.IEEE).axes[0]
    assert first.get_xlabel() == "Change of final perplexity (%)"


def rows_of(study: Study) -> list[dict[str, Any]]:
    return [dict(row) for _, row in study.per_run.iterrows()]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind in ("fedquad", "haflq") else LONG)
        for kind, strategy in STRATEGIES_OF_ALL.items()
        if strategy.has_global_model
    ],
)
def test_every_strategy_trains_a_language_model(home: Path, tmp_path: Path, kind: str) -> None:
    """In two rounds, with updates clipped, trimmed where that can be, and stacked two by two."""
    recipe: dict[str, Any] = {"learning_rate": 1.0e-2}
    if STRATEGIES_OF_ALL[kind].needs_plain_sgd:
        recipe = {"learning_rate": 0.3, "optimizer": "sgd", "momentum": 0.0}
    file = experiment(
        home,
        kind,
        strategies={kind: {"kind": kind, "rank": 4}},
        training={**recipe, "dtype": "fp32", "stack": 2},
        aggregation={"clip_norm": 100.0},
        stop={"rounds": 3},
    )
    (folder,) = run_all(file, tmp_path)
    perplexity = pd.read_parquet(folder / "rounds.parquet")["perplexity"].dropna()
    assert perplexity.iloc[-1] < perplexity.iloc[0]
    head = [name for name in load_file(folder / "adapter" / "adapter_model.safetensors")
            if "lora_" not in name]  # fmt: skip
    assert head == []


def test_a_target_of_perplexity_ends_a_run_from_above(home: Path, tmp_path: Path) -> None:
    file = experiment(home, "target", stop={"rounds": 50, "target": 100.0}, strategies={
        "fedlora": STRATEGIES["fedlora"]}, evaluation={"every": 1, "examples": 60})  # fmt: skip
    (folder,) = run_all(file, tmp_path)
    perplexity = pd.read_parquet(folder / "rounds.parquet")["perplexity"]
    assert perplexity.iloc[-1] <= 100.0 < perplexity.iloc[-2]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"shards": {"kind": "dirichlet"}},
            "shards: kind must be iid, natural, log-normal or sizes for",
        ),
        ({"shards": {"kind": "natural", "min_examples": 31}}, "got 0 of 8 clients; lower"),
        ({"stop": {"rounds": 1, "accuracy": 0.5}}, "stop.accuracy is no key; stop has"),
    ],
)
def test_what_a_language_model_cannot_be_trained_by_is_said_in_words(
    home: Path, changed: dict[str, Any], words: str
) -> None:
    file = experiment(home, "wrong", **changed)
    with pytest.raises(ConfigError) as error:
        prepare_all(load_experiment(file), file, home)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"model": "tiny", "targets": ["query"]},
            "must have a model that reads from left to right",
        ),
        ({"columns": {"text": "body"}}, "client must be a string or a whole number, got nothing"),
        (
            {"columns": {"text": "body", "labels": "x"}},
            "columns may name text, client, label, pair, score, ",
        ),
        ({"data": "wordnet-16", "columns": {}}, "the columns that the task reads, text, client"),
    ],
)
def test_a_task_that_does_not_fit_is_said_in_words(
    home: Path, changed: dict[str, Any], words: str
) -> None:
    whole = yaml.safe_load(experiment(home, "fits").read_text("utf-8"))
    file = experiment(home, "odd", task={**whole["task"], **changed})
    with pytest.raises(ConfigError) as error:
        prepare_all(load_experiment(file), file, home)
    assert words in str(error.value)
