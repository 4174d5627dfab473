"""Runs that charge the costs of a large model while a small one is trained in its place."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from analysis.metrics.study import study_of
from analysis.report.table import study_table
from analysis.runs.load import load_run
from devices.cost.proxy import ProxyCost
from simulator.config.experiment import ConfigError, load_experiment
from simulator.config.schema import RunConfig
from simulator.log.progress import reporter
from simulator.runs.preparation import prepare
from simulator.runs.run import run
from simulator.workers.trainers import Trainers
from simulator.world.build import build_world

CONFIG: dict[str, Any] = {
    "name": "proxy",
    "task": {"model": "tiny", "max_length": 16},
    "training": {"dtype": "fp32"},
    "evaluation": {"examples": 64},
    "local": {"batch_size": 4, "steps": 2},
    "fleet": {"devices": [{"profile": "jetson-agx-xavier-maxn", "count": 2, "link": "wifi"}]},
    "pacing": {"kind": "synchronous", "cohort": 2},
    "stop": {"rounds": 2},
    "strategy": {"kind": "fedlora", "rank": 2},
}


def config_of(folder: Path, **changed: Any) -> RunConfig:
    file = folder / "x.yaml"
    file.write_text(yaml.safe_dump({**CONFIG, **changed}), "utf-8")
    (config,) = load_experiment(file)
    return config


def refused(folder: Path, **changed: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build_world(config_of(folder, **changed), "x.yaml")
    return str(caught.value)


def test_the_world_is_the_same_and_the_costs_are_the_large_models(tmp_path: Path) -> None:
    plain = build_world(config_of(tmp_path), "x.yaml")
    charged = build_world(config_of(tmp_path, cost={"model": "roberta-large"}), "x.yaml")
    assert charged.conditions_hash == plain.conditions_hash
    assert isinstance(charged.cost_model, ProxyCost)
    assert charged.cost_model.blocks_each == 12
    assert charged.model == plain.model


def test_a_decoder_may_be_charged_for_an_encoder_whose_blocks_divide_its_own(
    tmp_path: Path,
) -> None:
    world = build_world(config_of(tmp_path, cost={"model": "tinyllama-1.1b"}), "x.yaml")
    assert isinstance(world.cost_model, ProxyCost)
    assert world.cost_model.blocks_each == 11
    assert [layer.name for layer in world.cost_model.large.model.targets] == ["q_proj", "v_proj"]


@pytest.mark.parametrize(
    ("cost", "says"),
    [
        ({"model": "robeta-large"}, "did you mean roberta-large?"),
        ({"model": "llama-3-8b", "targets": ["q_proj"]}, "as many modules of llama-3-8b"),
        ({"model": "llama-3-8b", "targets": ["query", "value"]}, "targets must be among q_proj"),
    ],
)
def test_a_large_model_that_cannot_be_charged_is_refused_in_words(
    tmp_path: Path, cost: dict[str, Any], says: str
) -> None:
    assert says in refused(tmp_path, cost=cost)


def test_a_proxy_that_does_not_fit_is_said_with_the_other_errors(tmp_path: Path) -> None:
    said = refused(
        tmp_path,
        cost={"model": "llama-3-8b", "targets": ["q_proj"]},
        fleet={"devices": [{"profile": "no-such-board", "link": "wifi"}]},
    )
    assert "as many modules of llama-3-8b" in said
    assert "no-such-board" in said


@pytest.mark.parametrize(
    ("cost", "says"),
    [
        ({"targets": ["query"]}, "say more of cost.model, which is not given"),
        ({"kind": "measured", "table": "x.csv", "model": "roberta-large"}, "a table or a model"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(
    tmp_path: Path, cost: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        config_of(tmp_path, cost=cost)


def test_memory_binds_by_itself_where_the_large_model_does_not_fit(tmp_path: Path) -> None:
    small = {"devices": [{"profile": "raspberry-pi-4-2gb", "link": "wifi"}]}
    said = refused(
        tmp_path, training="none", fleet=small, pacing={"kind": "synchronous", "cohort": 1},
        cost={"model": "llama-3-8b"},
    )  # fmt: skip
    assert "a device must hold at least the smallest plan" in said


def test_gradients_are_the_proxys_and_bytes_and_seconds_the_large_models(tmp_path: Path) -> None:
    folders = {}
    for name, cost in (("plain", {}), ("charged", {"model": "roberta-large"})):
        config = config_of(tmp_path, cost=cost)
        prepared = prepare(config, tmp_path / name, "x.yaml")
        with Trainers(1) as trainers:
            silent = reporter(Console(file=StringIO()))
            folders[name] = run(prepared, trainers=trainers, report=silent)
    manifests = {name: json.loads((f / "manifest.json").read_text()) for name, f in folders.items()}
    assert manifests["charged"]["adapter_sha256"] == manifests["plain"]["adapter_sha256"]
    assert manifests["charged"]["cost_model"]["name"] == "roberta-large"
    words = "trained as a proxy, at the costs of roberta-large"
    assert words in study_table(study_of([load_run(folders["charged"])])).note
    assert words not in study_table(study_of([load_run(folders["plain"])])).note
    assert "cost_model" not in manifests["plain"]
    plain, charged = (pq.read_table(f / "clients.parquet").to_pylist() for f in folders.values())
    for small, large in zip(plain, charged, strict=True):
        assert large["upload_bytes"] > 10 * small["upload_bytes"]
        assert large["train_s"] > 5 * small["train_s"]  # the fixed overhead limits this ratio
        assert large["peak_memory_bytes"] > 100 * small["peak_memory_bytes"]
