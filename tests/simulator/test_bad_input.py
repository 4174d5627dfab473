"""Thousands of broken configs and files give a clear error or a run, never anything else."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from devices.vocabulary.trainer import TrainingError
from simulator.config.experiment import load_experiment
from simulator.config.problems import UserError
from simulator.config.schema import RunConfig
from simulator.log.progress import reporter
from simulator.runs.preparation import prepare_all
from simulator.runs.run import run
from simulator.workers.trainers import Trainers
from simulator.world.record import record
from tests.simulator.fuzzing import Broke, Guided, broken_bytes, broken_tree, time_limit
from tests.simulator.own_data import write_data
from tests.torture import SEED, scaled

LIMIT_S = 20.0  # a hundred times the usual time of an input
LONGEST_MESSAGE = 20_000
MEMORY_BYTES = 6_000_000_000
ROUNDS, DEVICES, VARIANTS = 3, 500, 300  # larger numbers are valid, and take too long to try

BASE: dict[str, Any] = {
    "name": "fuzzed",
    "seed": 1,
    "task": {"model": "tiny", "data": "data", "max_length": 8, "targets": ["query", "value"]},
    "training": "none",
    "shards": {"kind": "dirichlet", "alpha": 0.5, "min_examples": 2},
    "local": {"batch_size": 4, "steps": 2, "proximal_mu": 0.0},
    "fleet": {
        "memory_share": [0.001, 0.002],
        "devices": [
            {"profile": "jetson-nano-maxn", "count": 3, "link": "wifi"},
            {"profile": "phone-snapdragon-665", "count": 2, "link": "link.csv", "latency": 0.1},
        ],
    },
    "selection": {"kind": "uniform"},
    "pacing": {"kind": "synchronous", "cohort": 3, "deadline_s": 50.0},
    "evaluation": {"every": 1, "examples": 8},
    "stop": {"rounds": 2, "simulated_s": 1e5},
    "strategy": {"kind": "fedlora", "rank": 2},
}
FLEETS: list[dict[str, Any]] = [
    {
        "memory_share": 0.001,
        "when_offline": "resume",
        "when_out_of_memory": "shrink",
        "size": 6,
        "devices": [
            {"profile": "jetson-nano-maxn", "share": 0.5, "link": {"mbps": [8, 2]},
             "availability": {"source": "online.csv", "start": "random"},
             "battery": {"capacity_j": 2000.0, "initial_share": [0.2, 0.9], "charge_w": 5.0,
                         "charging": "online.csv", "resume_share": 0.3}},
            {"profile": "jetson-tx2-maxn", "share": 0.5,
             "link": {"generator": {"kind": "markov", "technology": "lte"}, "variants": 3},
             "speed_spread": {"kind": "lognormal", "sigma": 0.3},
             "free_memory": 0.9, "speed": {"source": 0.5, "start": "beginning"}},
        ],
    },
    {"devices": [{"table": "table.csv", "profile": "jetson-nano-maxn", "link": "wifi",
                  "memory_share": 0.001}]},
    {"recorded": "conditions.json"},
]  # fmt: skip
FAULTS = {
    "crash": {"per_hour": 5.0, "down_s": 20.0, "schedule": [{"device": 1, "at_s": 3.0}]},
    "link_loss": {"per_hour": 30.0, "down_s": 5.0},
    "cut_transfers": "restart",
    "join": {"share": 0.2, "within_s": 100.0},
    "leave": {"per_hour": 0.1, "schedule": [{"device": 0, "at_s": 500.0}]},
    "server_restarts": [{"at_s": 10.0, "down_s": 5.0}],
}
PACINGS = [
    {"kind": "semi_synchronous", "cohort": 3, "period_s": 30.0},
    {"kind": "over_selection", "cohort": 3, "factor": 1.3},
    {"kind": "fedbuff", "concurrency": 3, "size": 2},
    {"kind": "fedasync", "concurrency": 2, "mixing_rate": 0.5},
]
STRATEGIES = ("fedquad", "haflq", "hetlora", "flora", "fedra", "legend", "layersel", "fah-qlora")
SELECTIONS = ("oort", "power_of_choice", "fair", "fedcs")


def seeds() -> list[dict[str, Any]]:
    """Return configs that between them use every part there is."""
    found = [BASE]
    found += [{**BASE, "fleet": fleet, "faults": FAULTS} for fleet in FLEETS]
    found += [{**BASE, "pacing": pacing} for pacing in PACINGS]
    found += [{**BASE, "strategy": {"kind": kind, "rank": 2}} for kind in STRATEGIES]
    found += [{**BASE, "selection": {"kind": kind}} for kind in SELECTIONS]
    plain = {key: value for key, value in BASE.items() if key != "strategy"}
    both = {"one": BASE["strategy"], "two": {"kind": "fedquad", "rank": 2}}
    return [*found, {**plain, "strategies": both}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Holds what the configs name; the process may not grow without end meanwhile."""
    folder = tmp_path_factory.mktemp("fuzz")
    write_data(folder / "data")
    (folder / "link.csv").write_text("time_s,downlink_mbps,uplink_mbps\n0,8,1\n2,16,2\n4,0,2\n")
    (folder / "online.csv").write_text(
        "device_id,start_s,end_s,state\na,0,60,online\na,60,90,offline\nb,0,50,online\n"
    )
    (folder / "table.csv").write_text(
        "device_id,speed,memory_share,link\nx,1.5,0.001,wifi\ny,0.5,0.002,link.csv\nz,1,0.001,lte\n"
    )
    here = Path.cwd()
    before = resource.getrlimit(resource.RLIMIT_AS)
    os.chdir(folder)
    try:
        file = folder / "base.yaml"
        file.write_text(yaml.safe_dump(BASE))
        record(simulate(file, folder / "recorded")[0], Path("."))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, before[1]))
        yield folder
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        os.chdir(here)


def is_small(config: RunConfig) -> bool:
    """Return whether the run of a valid config is worth its time here."""
    groups = config.fleet.devices
    variants = [getattr(group.link, "variants", 1) for group in groups]
    variants += [group.availability.variants for group in groups if group.availability]
    return sum(config.fleet.counts) <= DEVICES and all(n <= VARIANTS for n in variants)


def simulate(file: Path, output: Path) -> list[Path]:
    """Run a file as ``fedclock run`` does; return no folders where that would take too long."""
    configs = load_experiment(file)
    if not all(is_small(config) for config in configs):
        return []
    short = [
        replace(
            config,
            stop=replace(config.stop, rounds=min(config.stop.rounds, ROUNDS)),
            training="none",
        )
        for config in configs
    ]
    prepared = prepare_all(short, file, output)
    report = reporter(Console(file=StringIO()))
    with Trainers(1) as trainers:
        return [run(each, trainers=trainers, report=report) for each in prepared]


def answer(file: Path, output: Path) -> str:
    """Return what is said of a config: nothing where it ran. Raises where it ended otherwise."""
    status = "failed"
    try:
        with time_limit(LIMIT_S):
            folders = simulate(file, output)
        said, status = "" if folders else "too large", "done"
    except (UserError, TrainingError) as error:
        said = str(error)
        assert said.strip()
        assert len(said) < LONGEST_MESSAGE, said[:1000]
        said.encode()  # a terminal can show it
    manifests = [json.loads(path.read_text()) for path in output.rglob("manifest.json")]
    assert all(manifest["status"] in ("done", status) for manifest in manifests)
    assert bool(manifests) == output.exists(), "a folder without a run was left"
    shutil.rmtree(output, ignore_errors=True)
    return said


def test_every_seed_is_valid(folder: Path) -> None:
    problems = []
    for config in seeds():
        (folder / "x.yaml").write_text(yaml.safe_dump(config))
        problems.append(answer(folder / "x.yaml", folder / "out"))
    assert not any(problems), problems


GENERATED = {"profile": "jetson-nano-maxn", "count": 3}
BROKE: list[tuple[dict[str, Any], str]] = [
    ({"a[b": 1}, "a[b is no key"),
    (
        {"fleet": {"devices": [{**GENERATED, "link": {"generator": {"kind": "cellular"}}}]}},
        "fleet.devices.0.link.generator.kind must be one of markov, path_loss",
    ),
    (
        {"fleet": {"devices": [{**GENERATED, "link": {"generator": {"kind": "markov", "x": 1}}}]}},
        "fleet.devices.0.link.generator.x is no key",
    ),
    (
        {"fleet": {"devices": [{**GENERATED, "link": "wifi", "speed_spread": {"kind": "x"}}]}},
        "fleet.devices.0.speed_spread.kind must be one of lognormal, zipf, uniform",
    ),
    (
        {"fleet": {"devices": [{**GENERATED, "link": "wifi", "battery": {"x": 1}}]}},
        "fleet.devices.0.battery.x is no key",
    ),
    (
        {"faults": {"server_restarts": [{"at_s": 10.0, "down_s": 2**64}]}},
        "faults.server_restarts.0.down_s must be in (0, 1000000000], got 18446744073709551616",
    ),
    (
        {"faults": {"crash": {"per_hour": 3600.0, "down_s": 0.001},
                    "server_restarts": [{"at_s": 0.0, "down_s": 1e9}]}},
        "faults: a device must have at most 1000000 outages by chance",
    ),
    ({"fleet": {"recorded": "/dev/zero"}}, "must be a regular file"),
    ({"fleet": {"devices": [{**GENERATED, "link": "/dev/zero"}]}}, "a regular file or a folder"),
    ({"fleet": {"devices": [{"table": "/dev/zero"}]}}, "a regular file or a folder"),
    ({"fleet": {"devices": [{"profile": "/dev/zero", "link": "wifi"}]}}, "must be a regular file"),
    ({"fleet": {"devices": [{"profile": "../x.toml:a", "link": "wifi"}]}}, "profile: a relative"),
    ({"cost": {"kind": "measured", "table": "/dev/zero"}}, "cost.table: a path must be a regular"),
    ({"cost": {"kind": "measured", "table": "../x.toml"}}, "cost.table: a relative path must not"),
    ({"network": {"server": {"source": "../x.csv"}}}, "network.server.source: a relative path"),
    ({"fleet": {"devices": [{"mix": "../x", "count": 3, "link": "wifi"}]}}, "mix: a relative path"),
    ({"strategy": {"kind": "/dev/zero.py:X"}}, "cannot be read"),
]  # fmt: skip
"""Inputs that once caused a traceback, a hang or a process that took all memory."""


@pytest.mark.parametrize(("change", "says"), BROKE)
def test_what_once_broke_is_an_error_in_words(
    folder: Path, change: dict[str, Any], says: str
) -> None:
    (folder / "x.yaml").write_text(yaml.safe_dump({**BASE, **change}))
    assert says in answer(folder / "x.yaml", folder / "out")


@pytest.mark.torture
def test_a_broken_config_is_an_error_in_words_or_a_run(folder: Path) -> None:
    rng = np.random.default_rng([SEED, 1])
    guided, broke, counts = Guided(seeds()), Broke(folder.parent), Counter[str]()
    file, output = folder / "x.yaml", folder / "out"
    for _ in range(scaled(100, 60_000, least=200)):
        tree = broken_tree(rng, guided.pick(rng), seeds())
        content = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode()
        if rng.random() < 0.2:
            content = broken_bytes(rng, content)
        file.write_bytes(content)
        with broke.keeping(file):
            said = answer(file, output)
            guided.learn(tree, said)
            counts["error" if said not in ("", "too large") else said or "run"] += 1
        shutil.rmtree(output, ignore_errors=True)
        if counts.total() % 1000 == 0:
            print(f"configs: {dict(counts)}, {len(guided.wordings)} wordings", flush=True)
    assert not broke.found, broke.found
    assert counts["run"] > 0
    assert counts["error"] > 0


@pytest.mark.parametrize("key", ["task.data", "cost.table", "fleet.recorded", "link", "strategy"])
def test_a_path_to_a_pipe_or_out_by_a_link_is_refused_before_it_is_read(
    folder: Path, key: str
) -> None:
    os.makedirs("inner", exist_ok=True)
    for name in ("pipe.py", "out.py", "inner/out.csv"):
        Path(name).unlink(missing_ok=True)
    os.mkfifo("pipe.py")
    os.symlink("/etc/hostname", "out.py")
    os.symlink("/etc/hostname", "inner/out.csv")
    for named, says in (
        ("pipe.py", "must be a regular file"),
        ("out.py", "by a symbolic link"),
        ("inner", "by a symbolic link"),
    ):
        changes: dict[str, dict[str, Any]] = {
            "task.data": {"task": {**BASE["task"], "data": named}},
            "cost.table": {"cost": {"kind": "measured", "table": named}},
            "fleet.recorded": {"fleet": {"recorded": named}},
            "link": {"fleet": {"devices": [{**GENERATED, "link": named}]}},
            "strategy": {"strategy": {"kind": f"{named}:X", "rank": 2}},
        }
        if key != "strategy" or named.endswith(".py"):
            (folder / "x.yaml").write_text(yaml.safe_dump({**BASE, **changes[key]}))
            assert says in answer(folder / "x.yaml", folder / "out")
