"""A run's conditions, written out and replayed, give the same events byte for byte."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from simulator.config.experiment import ConfigError, load_experiment
from simulator.config.problems import UserError
from simulator.log.progress import PlainReporter
from simulator.runs.preparation import prepare
from simulator.runs.run import run
from simulator.workers.trainers import Trainers
from simulator.world.record import record
from simulator.world.recorded import read_conditions

CONFIG = {
    "name": "met",
    "task": {"model": "tiny", "max_length": 16},
    "training": "none",
    "local": {"batch_size": 4, "steps": 2},
    "fleet": {
        "memory_share": [0.1, 0.5],
        "when_offline": "resume",
        "devices": [
            {
                "profile": "raspberry-pi-4-2gb",
                "count": 6,
                "link": {"generator": {"kind": "markov", "technology": "3g"}, "variants": 2},
                "latency": 0.1,
                "speed_spread": {"kind": "zipf"},
                "availability": {
                    "generator": {
                        "kind": "on_off", "online_s": 4, "offline_s": 1, "period_s": 600
                    },
                    "start": "random",
                    "variants": 4,
                },
                "battery": {"capacity_j": 50, "initial_share": [0.2, 1.0], "charge_w": 20,
                            "charging": {"generator": {"kind": "on_off", "online_s": 3,
                                                       "offline_s": 3, "period_s": 600}}},
            },
            {"profile": "jetson-nano-maxn", "count": 2, "link": "lte-driving", "cell": "street"},
        ],
    },
    "network": {
        "server": {"mbps": [4, 1]}, "cells": {"street": {"source": "lte-driving-1"}},
    },
    "faults": {
        "crash": {"per_hour": 400, "down_s": 1},
        "link_loss": {"per_hour": 2000, "down_s": 0.2},
        "cut_transfers": "restart",
        "join": {"share": 0.3, "within_s": 3},
        "leave": {"per_hour": 10},
        "server_restarts": [{"at_s": 0.3, "down_s": 0.5}],
    },
    "pacing": {"kind": "synchronous", "cohort": 4, "deadline_s": 5},
    "stop": {"rounds": 12},
    "strategy": {"kind": "fedlora", "rank": 2},
}  # fmt: skip


def simulated(file: Path, folder: Path) -> str:
    (config,) = load_experiment(file)
    with Trainers(1) as trainers:
        run(
            prepare(config, folder, str(file)),
            trainers=trainers,
            report=PlainReporter(Console(quiet=True)),
        )
    return (folder / "events.jsonl").read_text("utf-8")


@pytest.fixture(scope="module")
def met(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run that met conditions of every kind."""
    folder = tmp_path_factory.mktemp("met")
    file = folder / "x.yaml"
    file.write_text(yaml.safe_dump(CONFIG), "utf-8")
    log = simulated(file, folder / "run")
    found = {json.loads(line)["event"] for line in log.splitlines()}
    # Without these events the replay would test little.
    assert {"went_offline", "came_back", "crashed", "link_lost", "server_restarted"} <= found
    return folder / "run"


def test_replayed_conditions_give_the_same_events_byte_for_byte(met: Path, tmp_path: Path) -> None:
    file = record(met, tmp_path / "replay")
    assert simulated(file, tmp_path / "again") == (met / "events.jsonl").read_text("utf-8")


def test_replay_is_independent_of_the_seed(met: Path, tmp_path: Path) -> None:
    file = record(met, tmp_path / "replay")
    raw = yaml.safe_load(file.read_text("utf-8"))
    fleet, _ = read_conditions(file.parent / raw["fleet"]["recorded"])
    (config,) = load_experiment(file, ["seed=5"])
    world = prepare(config, tmp_path / "other", str(file)).world
    assert world.fleet.conditions_hash() == fleet.conditions_hash()


def test_unfinished_run_is_not_recorded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a run must be finished to be recorded, got no run in"):
        record(tmp_path, tmp_path / "replay")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d.pop("link"), "lacks 'link'"),
        (lambda d: d["speed_factor"].pop(), "speed_factor must hold 8 devices, found 7"),
        (lambda d: d["link"]["index"].__setitem__(0, 99), "link must be among the .* found 99"),
        (lambda d: d.update(format=9), "must be recorded conditions of format 1"),
        (lambda d: d["link"]["pool"][0]["uplink"].update(values=[-1.0]), "as many values as times"),
        (lambda d: d["battery"]["pool"][0].update(capacity_j="x"), "capacity_j must be above 0"),
        (lambda d: d["link"]["offset_s"].__setitem__(0, None), "finite|float"),
        (lambda d: d["shared"]["cell_index"].__setitem__(0, 1), "cell_index must name one of 1"),
        (lambda d: d["memory_budget_bytes"].__setitem__(0, 0), "must be above 0"),
    ],
)
def test_damaged_recording_is_refused_by_name(
    met: Path, tmp_path: Path, damage: Callable[[dict[str, Any]], object], message: str
) -> None:
    file = record(met, tmp_path / "replay")
    place = tmp_path / "replay" / "conditions.json"
    document = json.loads(place.read_text("utf-8"))
    damage(document)
    place.write_text(json.dumps(document), "utf-8")
    (config,) = load_experiment(file)
    with pytest.raises(ConfigError, match=rf"fleet.recorded: .*conditions.json.*{message}"):
        prepare(config, tmp_path / "again", str(file))


def test_every_fault_of_a_run_is_written_down_whether_or_not_it_met_work(met: Path) -> None:
    faults = json.loads((met / "faults.json").read_text("utf-8"))
    events = [json.loads(line) for line in (met / "events.jsonl").read_text("utf-8").splitlines()]
    crashed = [event for event in events if event["event"] == "crashed"]
    assert len(faults["crash"]["schedule"]) >= len(crashed) > 0
    starts = {(one["device"], one["at_s"]) for one in faults["crash"]["schedule"]}
    for event in crashed:  # logged at its start, or when the device's work began during it
        ends = [(at, at + 1) for device, at in starts if device == event["device"]]
        assert any(start <= event["at_s"] <= end for start, end in ends)
