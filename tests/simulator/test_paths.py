"""Paths of a config start at its file, wherever that stands and wherever a command is started."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import fedclock as api
from devices.cost.measured import MeasuredCost, MeasuredStep, steps_text
from devices.fleet.catalog import CATALOG, profile
from simulator.config.experiment import ConfigError, load_experiment
from simulator.config.paths import paths_start
from simulator.config.schema import RunConfig
from simulator.log.manifest import read_manifest
from simulator.world.build import World, build_world
from simulator.world.record import record
from tests.command_line import fedclock
from tests.devices.training.tiny_task import save_model
from tests.simulator.own_data import write_data
from tests.simulator.test_experiment import VALID
from tests.simulator.test_own_strategy import SHOWN
from tests.torture import long
from traces.located import PathText, located

LARGE = MeasuredStep(
    device="own-nano-maxn", model="mine", compute_bits=32, depth=1, quantized_blocks=0,
    activation_bits=32, weight_format="fp32", batch_size=4, sequence_length=16, is_held_out=False,
    forward_flops=1e12, backward_flops=1e12, forward_bytes=1e11, backward_bytes=1e11,
    cast_bytes=0.0, unpacked_bytes=0.0, packed_bytes=0.0, optimizer_bytes=1e6, step_s=0.5,
    spread=0.0, num_repeats=3,
)  # fmt: skip

SMALL = {"forward_flops": 1.0, "backward_flops": 1.0, "forward_bytes": 1.0, "backward_bytes": 1.0}
STEPS = [
    replace(LARGE, device=device, **work)
    for device in ("own-nano-maxn", "mine")
    for work in (SMALL, {})
]

FLEET: dict[str, Any] = {
    "devices": [
        {
            "profile": "devices.toml:own-nano-maxn",
            "link": "links/slow.csv",
            "latency": "signals/latency.csv",
            "speed": "signals",
            "availability": "online.csv",
            "cell": "street",
        },
        {
            "device": {"name": "mine", "base": "devices.toml:own-nano-maxn", "watts": 9},
            "link": {"source": "links", "sample": "without_replacement"},
            "count": 2,
        },
        {"table": "table.csv"},
    ]
}
EVERY: dict[str, Any] = {
    **VALID,
    "task": {"model": "models/mine", "data": "data/mine", "max_length": 16},
    "fleet": FLEET,
    "network": {"cells": {"street": {"source": "links/slow.csv"}}},
    "cost": {"kind": "measured", "table": "steps.csv"},
    "strategy": {"kind": "mine.py:HalfDepth", "rank": 2},
}
"""A config with a relative path of every kind, but for recorded conditions."""

SIZES = {
    "model_type": "bert", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64,
}  # fmt: skip


def tree(folder: Path, config: dict[str, Any] = EVERY, *, latency_s: float = 0.25) -> Path:
    """Write an experiment with all that it names beside it."""
    (folder / "links").mkdir(parents=True)
    (folder / "signals").mkdir()
    (folder / "models" / "mine").mkdir(parents=True)
    (folder / "models" / "mine" / "config.json").write_text(json.dumps(SIZES), "utf-8")
    write_data(folder / "data" / "mine")
    for name, mbps in (("slow", 1), ("fast", 8)):
        text = f"time_s,downlink_mbps,uplink_mbps\n0,{mbps},{mbps}\n10,{mbps},{mbps}\n"
        (folder / "links" / f"{name}.csv").write_text(text, "utf-8")
    (folder / "signals" / "latency.csv").write_text(
        f"time_s,latency_s,speed_share\n0,{latency_s},0.5\n", "utf-8"
    )
    (folder / "online.csv").write_text("device_id,start_s,end_s,state\n1,0,900,online\n", "utf-8")
    (folder / "table.csv").write_text(
        "device_id,profile,link,availability\n7,devices.toml:own-nano-maxn,links/fast.csv,online.csv\n",
        "utf-8",
    )
    catalog = CATALOG.read_text("utf-8").replace('"jetson-nano"', '"own-nano"')
    (folder / "devices.toml").write_text(catalog, "utf-8")
    (folder / "steps.csv").write_text(steps_text(STEPS), "utf-8")
    (folder / "mine.py").write_text(SHOWN, "utf-8")
    file = folder / "x.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
    return file


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory that has nothing to do with any experiment."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def world_of(file: Path, *overrides: str) -> tuple[RunConfig, World]:
    (config,) = load_experiment(file, overrides)
    return config, build_world(config, str(file))


def check_values(world: World) -> None:
    """Assert that a world holds what the files of ``tree`` say."""
    assert world.source.name == "models/mine"
    assert world.model.num_blocks == 3
    assert (world.task.data.name, world.task.data.source) == ("mine", "data/mine")
    assert len(world.task.data.train) == 64
    assert isinstance(world.cost_model, MeasuredCost)
    assert world.cost_model.steps == tuple(STEPS)
    nano = profile("jetson-nano-maxn")
    first, *pool, last = (world.fleet[k] for k in range(4))
    assert first.profile.name == last.profile.name == "own-nano-maxn"
    assert first.profile.flops_per_s == nano.flops_per_s
    assert first.latency.at(0) == 0.25
    assert first.speed.at(0) == 0.5
    assert first.link.name == "slow"
    assert last.link.name == "fast"
    assert sorted(device.link.name for device in pool) == ["fast", "slow"]
    assert {device.profile.power_w["compute"] for device in pool} == {9}
    assert not np.isinf(first.availability.period_s)
    assert first.availability.period_s == last.availability.period_s
    assert [cell.downlink.period_s for cell in world.shared_links.cells] == [20]


def test_a_path_of_every_kind_starts_at_the_file_that_names_it(
    tmp_path: Path, elsewhere: Path
) -> None:
    file = tree(tmp_path / "there")
    for named in (file, Path("..", "there", "x.yaml")):
        config, world = world_of(named)
        check_values(world)
        assert config.strategy.kind == "mine.py:HalfDepth"
    done = fedclock("validate", "../there/x.yaml", cwd=elsewhere)
    assert (done.returncode, done.stdout) == (0, "../there/x.yaml: valid\n"), done.stderr


def test_nothing_follows_from_where_a_tree_stands_or_a_command_is_started(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tree(tmp_path / "there")
    config, world = world_of(file)
    shutil.copytree(file.parent, tmp_path / "moved" / "deep")
    file.parent.rename(tmp_path / "gone")
    for named in ("../gone/x.yaml", "../moved/deep/x.yaml"):
        other, found = world_of(Path(named))
        assert other == config
        assert other.hash == config.hash
        assert found.conditions_hash == world.conditions_hash
        assert found.source.files_sha256 == world.source.files_sha256
    monkeypatch.chdir(tmp_path / "gone")
    assert world_of(Path("x.yaml"))[1].conditions_hash == world.conditions_hash


def test_a_path_of_set_starts_at_the_file_too(tmp_path: Path, elsewhere: Path) -> None:
    file = tree(tmp_path / "there")
    write_data(file.parent / "data" / "other")
    write_data(elsewhere / "mine")
    config, world = world_of(file, "task.data=data/other")
    assert (config.task.data, world.task.data.source) == ("data/other", "data/other")
    with pytest.raises(ConfigError) as caught:
        world_of(file, "task.data=mine")
    assert f"nothing is at {file.parent / 'mine'}: a relative path starts at the folder" in str(
        caught.value
    )
    assert "not at the working directory, where mine is" in str(caught.value)


def test_what_is_not_there_is_said_with_its_place_and_what_was_meant(
    tmp_path: Path, elsewhere: Path
) -> None:
    file = tree(tmp_path / "there")
    wrong = {
        "task.model": "modles/mine",
        "task.data": "data/mien",
        "fleet": "{devices: [{profile: devcies.toml:own-nano-maxn, link: links/slo.csv, "
        "latency: signals/latencies.csv}]}",
        "network": "{server: {source: link/slow.csv}}",
    }
    done = fedclock("validate", file, *(f"--set={k}={v}" for k, v in wrong.items()), cwd=elsewhere)
    there = file.parent
    assert done.returncode == 2
    for given, meant in (
        ("modles/mine", "models/mine"),
        ("data/mien", "data/mine"),
        ("links/slo.csv", "links/slow.csv"),
        ("signals/latencies.csv", "signals/latency.csv"),
        ("link/slow.csv", "links/slow.csv"),
    ):
        assert f"nothing is at {there / given}; did you mean {meant}?" in done.stderr
    assert f"{there / 'devcies.toml'}" in done.stderr


def run_there(file: Path, cwd: Path, *options: str) -> Path:
    """Run an experiment, and return the folder of its run."""
    done = fedclock("run", file, "-q", *options, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / done.stdout.strip()


def test_a_run_folder_runs_where_it_is(tmp_path: Path, elsewhere: Path) -> None:
    file = tree(tmp_path / "there")
    folder = run_there(Path("x.yaml"), file.parent)
    assert read_manifest(folder)["paths_start"] == "../../.."
    events = (folder / "events.jsonl").read_bytes()
    # The run folder is moved with its experiment, and run from another working directory.
    shutil.move(file.parent, tmp_path / "moved")
    moved = tmp_path / "moved" / folder.relative_to(file.parent)
    assert run_there(moved / "config.yaml", elsewhere) == moved
    (moved / "clients.parquet").unlink()
    assert run_there(moved / "config.yaml", elsewhere) == moved
    assert (moved / "events.jsonl").read_bytes() == events
    # Another run of the same config: the experiment's files are found, and the output is asked for.
    again = run_there(moved / "config.yaml", elsewhere, "--output", "out")
    assert again == elsewhere / "out" / Path(*moved.parts[-2:])
    assert (again / "events.jsonl").read_bytes() == events
    assert read_manifest(again)["paths_start"] == "../../../../moved"
    assert load_experiment(again / "config.yaml", code="of_run_folders")[0].hash in again.name


def test_a_run_folder_without_its_experiment_reports_and_says_what_is_missing(
    tmp_path: Path, elsewhere: Path
) -> None:
    file = tree(tmp_path / "there")
    folder = run_there(Path("x.yaml"), file.parent)
    alone = Path(shutil.copytree(folder, tmp_path / "alone" / "one"))
    assert len(api.load(alone).runs) == 1
    (alone / "clients.parquet").unlink()  # so that the run is not complete and must be simulated
    done = fedclock("run", alone / "config.yaml", cwd=elsewhere)
    assert done.returncode == 2
    for named in ("models/mine", "data/mine", "links/slow.csv", "devices.toml", "online.csv"):
        assert named in done.stderr
    assert "Name or service not known" not in done.stderr.split("task.model")[0]
    # Its files beside it are found, where the manifest says that they are.
    for name in ("models", "data", "links", "signals"):
        shutil.copytree(file.parent / name, alone / name)
    for name in ("devices.toml", "online.csv", "table.csv"):
        shutil.copy(file.parent / name, alone)


def test_a_recorded_run_replays_from_anywhere(tmp_path: Path, elsewhere: Path) -> None:
    config = {**EVERY, "strategy": VALID["strategy"]}
    file = tree(tmp_path / "there", config)
    folder = run_there(Path("x.yaml"), file.parent)
    replay = record(folder, Path("..", "replay"))
    raw = yaml.safe_load(replay.read_text("utf-8"))
    assert raw["fleet"]["recorded"] == "conditions.json"
    assert raw["task"]["data"] == str(file.parent / "data" / "mine")
    again = run_there(replay, elsewhere)
    assert (again / "events.jsonl").read_bytes() == (folder / "events.jsonl").read_bytes()


def foreign(tmp_path: Path, **manifest: Any) -> Path:
    """Write a run folder of somebody else's, whose config names data outside of it."""
    write_data(tmp_path / "home" / "private")
    folder = tmp_path / "home" / "downloads" / "run"
    folder.mkdir(parents=True)
    config = {**VALID, "label": "fedlora", "task": {**VALID["task"], "data": "private"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return folder / "config.yaml"


@pytest.mark.parametrize("start", ["../..", None, "absolute"])
@pytest.mark.parametrize("data", [{}, {"data": {"sha256": "0" * 64}}, {"data": 3}])
def test_a_run_folder_of_somebody_else_takes_no_file_that_they_did_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str | None, data: dict[str, Any]
) -> None:
    home = tmp_path / "home"
    start = str(home) if start == "absolute" else start
    file = foreign(tmp_path, **data, **({"paths_start": start} if start else {}))
    monkeypatch.chdir(home)  # paths start here if the manifest does not say where
    said = fedclock("run", file, cwd=home)
    assert said.returncode == 2
    assert "task.data must be the files that the run of this folder had" in said.stderr
    assert "copy config.yaml into the folder of the experiment" in said.stderr
    assert sorted(path.name for path in file.parent.iterdir()) == ["config.yaml", "manifest.json"]
    assert not (home / "runs").exists()


def test_traces_outside_of_a_run_folder_are_those_of_the_run(tmp_path: Path) -> None:
    file = tree(tmp_path / "there", {**VALID, "fleet": FLEET, "network": EVERY["network"]})
    folder = run_there(Path("x.yaml"), file.parent)
    text = "time_s,latency_s,speed_share\n0,0.75,0.5\n"
    (file.parent / "signals" / "latency.csv").write_text(text, "utf-8")
    done = fedclock("run", folder / "config.yaml", "--output", "new", cwd=tmp_path)
    assert done.returncode == 2
    assert "fleet must meet the traces and devices that the run of this folder met" in done.stderr
    copied = shutil.copy(folder / "config.yaml", file.parent / "again.yaml")
    assert fedclock("run", copied, "--output", "new", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("task.data", "{up}private"),
        ("task.model", "{up}private"),
        ("fleet.devices", "[{{profile: '{up}private/x.toml', link: wifi}}]"),
        ("fleet.devices", "[{{profile: jetson-nano-maxn, link: '{up}private/train.csv'}}]"),
        ("fleet.devices", "[{{table: '{up}private/train.csv'}}]"),
        ("fleet", "{{recorded: '{up}private/train.csv'}}"),
        ("network", "{{server: {{source: '{up}private/train.csv'}}}}"),
        ("cost", "{{kind: measured, table: '{up}private/train.csv'}}"),
    ],
)
@pytest.mark.parametrize("up", ["../", "inner/../../", "away/"])
def test_no_path_leads_out_of_the_folder_of_its_file(
    tmp_path: Path, elsewhere: Path, key: str, named: str, up: str
) -> None:
    """The working directory, which holds all of it, is no permission."""
    home = tmp_path / "home"
    write_data(tmp_path / "private")
    (home / "inner").mkdir(parents=True)
    (home / "away").symlink_to(tmp_path)
    (tmp_path / "private" / "x.toml").touch()
    file = home / "x.yaml"
    raw = {**VALID}
    (place, *inner) = key.split(".")
    value = yaml.safe_load(named.format(up=up))
    raw[place] = {**raw.get(place, {}), inner[0]: value} if inner else value
    file.write_text(yaml.safe_dump(raw), "utf-8")
    for cwd in (tmp_path, home, elsewhere):
        done = fedclock("validate", file, cwd=cwd)
        assert done.returncode == 2
        assert "a relative path must not lead out of its folder by" in done.stderr


def test_a_table_names_no_file_outside_of_the_folder(tmp_path: Path, elsewhere: Path) -> None:
    file = tree(tmp_path / "there")
    shutil.copy(file.parent / "links" / "slow.csv", tmp_path)
    (file.parent / "table.csv").write_text("device_id,link\n7,../slow.csv\n", "utf-8")
    done = fedclock("validate", file, cwd=elsewhere)
    assert "must not lead out of its folder by '..', got ../slow.csv" in done.stderr


def test_a_config_that_is_no_file_starts_at_the_working_directory(
    tmp_path: Path, elsewhere: Path
) -> None:
    write_data(elsewhere / "mine")
    config = {**VALID, "task": {**VALID["task"], "data": "mine"}}
    result = api.run(config)
    assert result.runs[0].manifest["data"]["source"] == "mine"
    assert paths_start(Path("/dev/stdin")) == paths_start(Path("/proc/self/fd/0")) == Path()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert paths_start(pipe) == Path()


@pytest.mark.parametrize("text", ["[]", '{"paths_start": 3}', '{"paths_start": "a\\u0000b"}', "{}"])
def test_a_manifest_that_does_not_say_starts_at_the_working_directory(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "x.yaml").touch()
    (tmp_path / "manifest.json").write_text(text, "utf-8")
    assert paths_start(tmp_path / "x.yaml") == Path()


def test_a_damaged_manifest_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(VALID), "utf-8")
    (tmp_path / "manifest.json").write_text("{", "utf-8")
    with pytest.raises(ConfigError, match=r"manifest.json cannot be read or is damaged"):
        load_experiment(tmp_path / "x.yaml")


def test_a_run_of_names_alone_says_nothing_of_where_it_was_started(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(VALID), "utf-8")
    folder = run_there(Path("x.yaml"), tmp_path)
    assert "paths_start" not in read_manifest(folder)


def test_a_path_keeps_its_folder_on_the_way_to_another_process() -> None:
    named = pickle.loads(pickle.dumps(PathText("a/b", Path("there"))))
    assert (named, located(named)) == ("a/b", Path("there/a/b"))
    assert located(PathText("/a/b", Path("there"))) == Path("/a/b")


@long
def test_a_model_beside_the_file_is_trained_from_elsewhere(tmp_path: Path, elsewhere: Path) -> None:
    file = tree(tmp_path / "there", {
        **EVERY,
        "training": {"learning_rate": 0.01},
        "local": {"batch_size": 4, "steps": 1},
        "stop": {"rounds": 1},
        "evaluation": {"examples": 8},
        "shards": {"kind": "iid", "min_examples": 1},
    })  # fmt: skip
    shutil.rmtree(file.parent / "models" / "mine")
    save_model(file.parent / "models" / "mine", "bert", num_classes=2)
    folder = run_there(Path("..", "there", "x.yaml"), elsewhere, "--no-cache")
    assert read_manifest(folder)["model"]["name"] == "models/mine"
    assert read_manifest(folder)["paths_start"] == "../../../../there"
    assert (folder / "adapter" / "adapter_config.json").is_file()
