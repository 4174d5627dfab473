"""Power modes that change by round decide time and energy, alike for every scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from rich.console import Console

from devices.fleet.catalog import modes_of, profile
from simulator.config.experiment import ConfigError, load_experiment
from simulator.config.problems import UserError
from simulator.engine.modes import ModeGroup, PowerModes
from simulator.log.progress import PlainReporter
from simulator.runs.preparation import prepare
from simulator.runs.run import run
from simulator.workers.trainers import Trainers
from simulator.world.build import build_world
from simulator.world.record import record

TX2 = tuple(map(profile, modes_of("jetson-tx2-maxn")))


def config(modes: dict[str, int] | None, **group: Any) -> dict[str, Any]:
    boards = {"profile": "jetson-tx2-maxn", "count": 6, "link": "wifi", **group}
    return {
        "name": "modes",
        "task": {"model": "tiny", "max_length": 16},
        "training": "none",
        "local": {"batch_size": 8, "steps": 2},
        "fleet": {"devices": [{**boards, **({"modes": modes} if modes else {})}]},
        "pacing": {"kind": "synchronous", "cohort": 6},
        "stop": {"rounds": 6},
    }


def clients(tmp_path: Path, kind: str) -> tuple[Path, pd.DataFrame]:
    """Run one strategy; return its folder and its plans by device and round."""
    file = tmp_path / f"{kind}.yaml"
    file.write_text(yaml.safe_dump({**config({"redraw_every": 2}), "strategy": {"kind": kind}}))
    (one,) = load_experiment(file)
    with Trainers(1) as trainers:
        report = PlainReporter(Console(quiet=True))
        run(prepare(one, tmp_path / kind, str(file)), trainers=trainers, report=report)
    return tmp_path / kind, pd.read_parquet(tmp_path / kind / "clients.parquet")


def test_modes_hold_for_their_rounds_and_are_alike_for_every_scheduler(tmp_path: Path) -> None:
    _, plans = clients(tmp_path, "fedlora")
    modes = plans.pivot(index="device_id", columns="round", values="profile").astype(str)
    for first in (1, 3, 5):
        assert (modes[first] == modes[first + 1]).all()
    assert (modes[1] != modes[3]).any()
    assert (modes[3] != modes[5]).any()
    assert set(modes.to_numpy().ravel()) == {kind.name for kind in TX2}
    _, others = clients(tmp_path, "fedquad")
    other = others.pivot(index="device_id", columns="round", values="profile").astype(str)
    pd.testing.assert_frame_equal(other, modes)


def test_a_plan_takes_the_time_and_the_watts_of_its_mode(tmp_path: Path) -> None:
    folder, plans = clients(tmp_path, "fedlora")
    watts = plans["profile"].astype(str).map({kind.name: kind.power_w["compute"] for kind in TX2})
    np.testing.assert_allclose(plans["energy_compute_j"], plans["train_s"] * watts)
    taken_s = plans.groupby(plans["profile"].astype(str))["train_s"].agg(["min", "max"])
    np.testing.assert_allclose(taken_s["min"], taken_s["max"])
    assert taken_s.loc["jetson-tx2-maxq", "min"] > 1.2 * taken_s.loc["jetson-tx2-maxn", "max"]
    with pytest.raises(UserError, match="power modes must not change"):
        record(folder, tmp_path / "recorded")


def test_one_more_device_moves_no_draw() -> None:
    def drawn(count: int, number: int) -> list[str]:
        group = ModeGroup("boards", np.arange(count), TX2, 20)
        found = PowerModes(3, (group,)).in_round(number)
        return [found[device].name for device in range(count)]

    assert drawn(40, 1) == drawn(41, 1)[:40]
    assert drawn(40, 1) == drawn(40, 20)
    assert drawn(40, 1) != drawn(40, 21)


def test_modes_are_conditions_of_a_run(tmp_path: Path) -> None:
    hashes = set()
    for modes in (None, {"redraw_every": 2}, {"redraw_every": 3}):
        file = tmp_path / "x.yaml"
        file.write_text(yaml.safe_dump({**config(modes), "strategy": {"kind": "fedlora"}}))
        (one,) = load_experiment(file)
        hashes.add(build_world(one, str(file)).conditions_hash)
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ({"profile": "raspberry-pi-5-8gb"}, "must be a power mode of a board"),
        ({"profile": None, "device": {"name": "x", "base": "jetson-tx2-maxn"}}, "left out"),
    ],
)
def test_devices_without_modes_are_refused(
    group: dict[str, Any], words: str, tmp_path: Path
) -> None:
    given = config({"redraw_every": 2}, **group)
    boards = given["fleet"]["devices"][0]
    given["fleet"]["devices"] = [{k: v for k, v in boards.items() if v is not None}]
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump({**given, "strategy": {"kind": "fedlora"}}))
    (one,) = load_experiment(file)
    with pytest.raises(ConfigError, match=words):
        build_world(one, str(file))


def test_boards_of_a_mix_draw_from_the_modes_of_their_own_kind(tmp_path: Path) -> None:
    given = config({"redraw_every": 2}, profile=None, mix="jetson-testbed", count=40)
    boards = given["fleet"]["devices"][0]
    given["fleet"]["devices"] = [{k: v for k, v in boards.items() if v is not None}]
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump({**given, "strategy": {"kind": "fedlora"}}))
    (one,) = load_experiment(file)
    world = build_world(one, str(file))
    modes = world.modes.in_round(1)
    assert sorted(modes) == list(range(40))
    for device_id, mode in modes.items():
        kind = world.fleet.profile_of(device_id)
        assert mode.title.partition(",")[0] == kind.title.partition(",")[0]
    assert len({mode.name for mode in modes.values()}) > 5
