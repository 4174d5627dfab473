"""A deadline that plans cannot meet is said before the run, and refused where nobody ever can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simulator.config.experiment import ConfigError, read_experiment
from simulator.config.schema import RunConfig
from simulator.runs.preparation import notes
from simulator.world.build import build_world
from simulator.world.deadline import shortest_s
from simulator.world.rehearsal import rehearse

FAST, SLOW = (
    {"profile": "jetson-nano-maxn", "count": 2, "link": {"mbps": [down, down]}}
    for down in (1000, 0.01)
)
BASE: dict[str, Any] = {
    "name": "small",
    "task": {"model": "tiny", "max_length": 16},
    "training": "none",
    "local": {"batch_size": 4, "steps": 2},
    "fleet": {"devices": [FAST, SLOW]},
    "stop": {"rounds": 1},
    "strategy": {"kind": "fedlora", "rank": 2},
}


def config_of(**pacing: Any) -> RunConfig:
    pacing = {"kind": "synchronous", "cohort": 4, **pacing}
    (config,) = read_experiment({**BASE, "pacing": pacing}, (), Path("x.yaml"))
    return config


def said(config: RunConfig) -> list[str]:
    return notes(config, build_world(config, "x.yaml"), "x.yaml")


def shortest(config: RunConfig) -> dict[int, float]:
    world = build_world(config, "x.yaml")
    _, plans = rehearse(config, world, "x.yaml")
    return {plan.device_id: shortest_s(world, plan, plan.device_id) for plan in plans}


def test_the_shortest_time_is_that_of_a_plan_on_a_constant_link() -> None:
    config = config_of()
    world = build_world(config, "x.yaml")
    _, plans = rehearse(config, world, "x.yaml")
    cost = world.cost_model.cost(plans[0], world.fleet.profile_of(0))
    rate = 1000e6 / 8
    by_hand = (cost.download_bytes + cost.upload_bytes) / rate + cost.train_s
    assert shortest_s(world, plans[0], 0) == pytest.approx(by_hand, rel=1e-12)


def test_devices_that_are_late_whatever_happens_are_said_by_number() -> None:
    times = shortest(config_of())
    between = (max(times[0], times[1]) + min(times[2], times[3])) / 2
    (line,) = said(config_of(deadline_s=between))
    assert "2 of 4" in line
    assert line.endswith(": 2, 3")
    assert said(config_of(deadline_s=max(times.values()) * 1.01)) == []
    assert said(config_of()) == []


def test_a_deadline_that_no_plan_of_the_strategy_meets_is_said() -> None:
    times = shortest(config_of())
    (line,) = said(config_of(deadline_s=min(times.values()) * 0.99))
    assert "every device" in line


def test_a_deadline_below_the_smallest_plan_of_all_is_refused_with_its_key() -> None:
    with pytest.raises(ConfigError, match=r"^pacing\.deadline_s must leave some device the time"):
        said(config_of(deadline_s=1e-4))


def test_a_period_after_which_the_server_goes_on_waiting_is_no_deadline() -> None:
    assert said(config_of(kind="semi_synchronous", period_s=1e-4)) == []
