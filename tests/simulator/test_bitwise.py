"""The same config and seed give the same bytes, whatever the workers, interpreter or additions."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from rich.console import Console

from devices.fleet.fleet import Fleet
from simulator.config.experiment import load_experiment
from simulator.config.faults import FaultsConfig
from simulator.config.problems import Problems
from simulator.config.schema import RunConfig, read_section
from simulator.engine.faults import draw_faults
from simulator.log.progress import reporter
from simulator.runs.preparation import prepare
from simulator.runs.run import run
from simulator.workers.trainers import Trainers
from simulator.world.build import build_world
from tests.simulator.other_python import agreed
from tests.simulator.own_data import write_data
from tests.torture import LONG, long, scaled

ROOT = Path(__file__).parents[2]
MET: dict[str, Any] = {
    "link": "lte-driving",
    "latency": {"source": 0.05},
    "availability": {
        "generator": {"kind": "on_off", "online_s": 300.0, "offline_s": 30.0},
        "variants": 4,
    },
    "battery": {"capacity_j": 20_000.0, "initial_share": [0.3, 0.9], "charge_w": 5.0},
    "speed_spread": {"kind": "lognormal", "sigma": 0.3},
}
CONFIG: dict[str, Any] = {
    "name": "bitwise",
    "label": "one",
    "task": {"model": "tiny", "max_length": 8},
    "training": "none",
    "evaluation": {"examples": 8},
    "shards": {"kind": "drawn", "examples": 8},
    "local": {"batch_size": 4, "steps": 2},
    "fleet": {
        "memory_share": [0.001, 0.002],
        "when_offline": "resume",
        "devices": [
            {"profile": "jetson-nano-maxn", "count": 4, **MET},
            {"profile": "phone-snapdragon-665", "count": 2, "link": "wifi"},
        ],
    },
    "faults": {  # the run lasts about two seconds
        "crash": {"per_hour": 1800.0, "down_s": 0.1, "schedule": [{"device": 5, "at_s": 0.02}]},
        "link_loss": {"per_hour": 3600.0, "down_s": 0.02},
        "cut_transfers": "restart",
        "join": {"share": 0.3, "within_s": 0.2},
        "server_restarts": [{"at_s": 0.05, "down_s": 0.02}],
    },
    "pacing": {"kind": "fedasync", "concurrency": 4},
    "stop": {"rounds": 40},
    "strategy": {"kind": "fedquad", "rank": 2},
}
REAL = {
    **CONFIG,
    "training": {"learning_rate": 5e-3, "dtype": "fp32", "compute": "cpu"},
    "stop": {"rounds": 8},
}


def write(folder: Path, config: dict[str, Any]) -> Path:
    data = folder / "data"
    if not data.exists():
        write_data(data)
    file = folder / "x.yaml"
    task = {**config["task"], "data": str(data)}
    file.write_text(yaml.safe_dump({**config, "task": task}), "utf-8")
    return file


def outcome(
    file: Path, output: Path, workers: int, executor: str = "processes"
) -> tuple[bytes, str]:
    """Return the event log and the hash of the final adapter."""
    (config,) = load_experiment(file)
    with Trainers(workers, executor=executor) as trainers:
        prepared = prepare(config, output, str(file))
        folder = run(prepared, trainers=trainers, report=reporter(Console(file=StringIO())))
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    return (folder / "events.jsonl").read_bytes(), manifest["adapter_sha256"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[bytes, str]]:
    """Return the config and the outcome of a run with faults and asynchronous rounds, trained on
    one process."""
    folder = tmp_path_factory.mktemp("alone")
    file = write(folder, REAL)
    return file, outcome(file, folder / "one", 1)


@pytest.mark.parametrize(
    ("executor", "workers"),
    [pytest.param("processes", 4, marks=LONG), pytest.param("ray", 2, marks=LONG)],
)
def test_any_executor_writes_what_one_process_does(
    executor: str, workers: int, alone: tuple[Path, tuple[bytes, str]], tmp_path: Path
) -> None:
    if executor == "ray":
        pytest.importorskip("ray", reason="needs the extra [ray]")
    file, (log, adapter) = alone
    assert {b"crashed", b"server_restarted"} <= set(re.findall(rb'"event": "(\w+)"', log))
    assert outcome(file, tmp_path / "many", workers, executor) == (log, adapter)


def other_pythons() -> list[str]:
    """Interpreters of other minor versions that can import what a timing-only run needs.

    ``FEDCLOCK_PYTHONS`` names more, separated by colons.
    """
    names = [f"python3.{minor}" for minor in range(11, 20) if minor != sys.version_info.minor]
    paths = [found for name in names if (found := shutil.which(name))]
    paths += filter(None, os.environ.get("FEDCLOCK_PYTHONS", "").split(":"))
    needs = "import numpy, simpy, pydantic, yaml, pyarrow, typer, rich, safetensors, platformdirs"
    return [
        p for p in paths if subprocess.run([p, "-c", needs], capture_output=True).returncode == 0
    ]


def test_another_python_writes_the_same_log_and_learns_the_same_adapters(tmp_path: Path) -> None:
    pythons = other_pythons()
    if not pythons:
        pytest.skip("no other Python here has the libraries; FEDCLOCK_PYTHONS may name one")
    file = write(tmp_path, CONFIG)
    here = agreed(file, tmp_path / "here")
    assert len((tmp_path / "here" / "events.jsonl").read_text("utf-8").splitlines()) > 100
    assert len(set(here.values())) > len(here) / 2  # strategies differ in what they learn
    for number, python in enumerate(pythons):
        done = subprocess.run(
            [python, "-m", "tests.simulator.other_python", file, tmp_path / str(number)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == here, python


QUANTITIES = ("link", "latency", "speed", "free_memory", "availability", "battery")


@cache
def data_folder(parent: Path) -> str:
    return str(write_data(parent / "data"))


def world_of(config: dict[str, Any], folder: Path) -> tuple[RunConfig, Fleet]:
    task = {**config["task"], "data": data_folder(folder)}
    file = folder / "world.yaml"
    file.write_text(yaml.safe_dump({**config, "task": task}), "utf-8")
    (read,) = load_experiment(file)
    return read, build_world(read, str(file)).fleet


def drawn(fleet: Fleet, device: int) -> dict[str, Any]:
    """Return all that the seed gave one device."""
    found: dict[str, Any] = {
        "budget": int(fleet.memory_budget_bytes[device]),
        "speed_factor": float(fleet.speed_factor[device]),
        "battery_share": float(fleet.battery_share[device]),
        "examples": fleet.shards[device].tolist(),
    }
    for name in QUANTITIES:
        of = getattr(fleet, name)
        trace = of.pool[of.index[device]]
        found[name] = repr(vars(trace)) if hasattr(trace, "__dict__") else repr(trace)
        found[f"{name} start"] = float(of.offset_s[device])
    return found


@pytest.mark.torture
@settings(max_examples=scaled(8, 300), phases=[Phase.generate])
@given(
    seed=st.integers(0, 2**63 - 1),
    more=st.integers(1, 5),
    quantity=st.sampled_from(["latency", "speed", "free_memory", "link", "battery"]),
)
def test_a_device_or_a_draw_more_moves_no_other(
    tmp_path_factory: pytest.TempPathFactory, seed: int, more: int, quantity: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "worlds"
    folder.mkdir(exist_ok=True)
    _, before = world_of({**CONFIG, "seed": seed}, folder)
    first, second = CONFIG["fleet"]["devices"]
    fleet = {**CONFIG["fleet"], "devices": [first, {**second, "count": 2 + more}]}
    _, grown = world_of({**CONFIG, "seed": seed, "fleet": fleet}, folder)
    assert len(grown) == len(before) + more
    for device in range(len(before)):
        assert drawn(grown, device) == drawn(before, device)

    other = {"link": "5g", "battery": {"capacity_j": 1.0}}.get(quantity, 0.5)
    fleet = {**CONFIG["fleet"], "devices": [{**first, quantity: other}, second]}
    _, changed = world_of({**CONFIG, "seed": seed, "fleet": fleet}, folder)
    for device in range(len(before)):
        was, now = drawn(before, device), drawn(changed, device)
        moved = {name for name in was if was[name] != now[name]}
        allowed = {quantity, f"{quantity} start"} | (
            {"battery_share"} if quantity == "battery" else set()
        )
        assert moved <= allowed


@long
@pytest.mark.torture
@settings(max_examples=scaled(20, 1_000))
@given(seed=st.integers(0, 2**32), count=st.integers(1, 8), more=st.integers(1, 8))
def test_the_faults_of_a_device_are_its_own(seed: int, count: int, more: int) -> None:
    config = read_section(FaultsConfig, {**CONFIG["faults"], "leave": {"per_hour": 1.0}})
    few = draw_faults(config, count, seed=seed, problems=Problems())
    many = draw_faults(config, count + more, seed=seed, problems=Problems())
    many.crashes(count).span(1e5)  # the order and range of queries must not change any draw
    for device in range(count):
        assert many.crashes(device).given_within(3e4) == few.crashes(device).given_within(3e4)
        assert many.link_losses(device).span(1e4) == few.link_losses(device).span(1e4)
    assert np.array_equal(many.join_s[:count], few.join_s)
    assert np.array_equal(many.leave_s[:count], few.leave_s)
