"""A round in closed form is the round that a process for each device lives through."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from devices.vocabulary.trainer import NullTrainer
from simulator.config.experiment import load_experiment
from simulator.engine.server import simulate
from simulator.log.bulk_round import Wave
from simulator.log.records import ClientTable, DeviceRecord
from simulator.log.run_folder import RunFolder
from simulator.runs.run import federation_of
from simulator.world.build import build_world
from tests.simulator.small import Memory, OneByOne, make_device, make_federation
from traces.steps import StepTrace

FLEET = [
    {"profile": "jetson-nano-5w", "count": 7, "link": "lte-driving"},
    {"profile": "jetson-tx2-maxn", "count": 5, "link": "5g"},
    {"profile": "jetson-tx2-maxn", "count": 6, "link": {"mbps": [10.0, 5.0]}},  # in lockstep
    {"profile": "raspberry-pi-5-8gb", "count": 2, "link": "wifi", "speed": 0.7},
    {
        "profile": "raspberry-pi-5-8gb",
        "count": 2,
        "link": "wifi",
        "speed_spread": {"kind": "uniform", "lowest": 0.5, "highest": 2.0},
    },
]


class Waves(Memory):
    """Counts what comes as a whole."""

    num_waves = 0

    def wave(self, wave: Wave) -> None:
        self.num_waves += 1
        self.events += wave.events()

    def client_table(self, table: ClientTable) -> None:
        assert len(table)


def config_with(tmp_path: Path, changed: Mapping[str, Any]) -> Any:
    plain = {
        "name": "x",
        "task": {"model": "tiny", "max_length": 16},
        "training": "none",
        "shards": {"kind": "drawn", "examples": 20},
        "local": {"batch_size": 8, "steps": 2},
        "fleet": {"devices": FLEET},
        "pacing": {"kind": "synchronous", "cohort": 14},
        "stop": {"rounds": 3},
        "strategy": {"kind": "fedlora", "rank": 4},
    }
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump({**plain, **changed}), "utf-8")
    (config,) = load_experiment(file)
    return config


def written(config: Any, trainer: Any, folder: Path) -> tuple[str, list[Any]]:
    """The event log and the tables of a run."""
    world = build_world(config, "x.yaml")
    store = RunFolder(folder, config.resolved(), {})
    store.fleet(DeviceRecord.columns(world.fleet))
    simulate(federation_of(config, world, trainer(world.model.num_blocks)), store)
    store.close("done", {})
    tables = [pq.read_table(folder / f"{name}.parquet") for name in ("clients", "rounds")]
    return (folder / "events.jsonl").read_text("utf-8"), tables


def num_waves(config: Any) -> int:
    world = build_world(config, "x.yaml")
    log = Waves()
    simulate(federation_of(config, world, NullTrainer(world.model.num_blocks)), log)
    return log.num_waves


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("strategy", ["fedlora", "fedquad", "haflq", "flora"])
def test_a_wave_leaves_what_processes_leave(tmp_path: Path, seed: int, strategy: str) -> None:
    changed = {"seed": seed, "strategy": {"kind": strategy, "rank": 4}}
    config = config_with(tmp_path, changed)
    assert num_waves(config) == 3
    events, tables = written(config, NullTrainer, tmp_path / "wave")
    other_events, other_tables = written(config, OneByOne, tmp_path / "processes")
    assert events == other_events
    for table, other in zip(tables, other_tables, strict=True):
        assert table.schema.equals(other.schema)
        for name in table.column_names:
            assert repr(table[name].to_pylist()) == repr(other[name].to_pylist()), name


@pytest.mark.parametrize(
    "changed",
    [
        {"pacing": {"kind": "fedbuff", "concurrency": 5, "size": 3}},
        {"pacing": {"kind": "synchronous", "cohort": 14, "deadline_s": 0.01}},
        {"faults": {"link_loss": {"per_hour": 1.0}}},
        {"faults": {"crash": {"per_hour": 1.0}}},
        {"faults": {"server_restarts": [{"at_s": 0.1, "down_s": 1.0}]}},
        {"fleet": {"devices": [{**one, "latency": 0.05} for one in FLEET[:4]]}},
        {"fleet": {"devices": [{**one, "free_memory": 0.5} for one in FLEET[:4]]}},
    ],
)
def test_what_can_be_cut_is_no_wave(tmp_path: Path, changed: Mapping[str, Any]) -> None:
    config = config_with(tmp_path, changed)
    assert num_waves(config) == 0


def test_only_the_rounds_with_a_device_that_leaves_are_no_waves(tmp_path: Path) -> None:
    leave = {"leave": {"schedule": [{"device": 0, "at_s": 1e-3}]}}
    everybody = {"kind": "synchronous", "cohort": 22}
    assert num_waves(config_with(tmp_path, {"faults": leave, "pacing": everybody})) == 2


rates = st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0, 1e5]), min_size=1, max_size=6)


@given(
    values=rates,
    lengths=st.lists(st.floats(0.01, 100), min_size=6, max_size=6),
    loops=st.booleans(),
    clocks=st.lists(
        st.tuples(
            st.floats(1e-3, 1e7), st.floats(0, 1e6), st.sampled_from([0.0, 0.3, 50.0, 999.0])
        ),
        min_size=1,
        max_size=8,
    ),
)
def test_times_of_many_clocks_are_those_of_each(
    values: list[float],
    lengths: list[float],
    loops: bool,
    clocks: list[tuple[float, float, float]],
) -> None:
    edges = np.concatenate([[0.0], np.cumsum(lengths[: len(values)])])
    trace = StepTrace(edges[:-1], np.array(values), edges[-1] if loops else np.inf)
    amounts, starts, offsets = np.array(clocks).T
    together = trace.times_to(amounts, starts, offsets)
    one_by_one = [
        (trace.begun_at(offset) if offset else trace).time_to(amount, start)
        for amount, start, offset in clocks
    ]
    assert together.tolist() == one_by_one


def test_records_come_back_from_their_table() -> None:
    log = Memory()
    simulate(make_federation([make_device(k) for k in range(3)]), log)
    table = ClientTable.of(log.clients)
    again = ClientTable.of(list(table.records()))
    for name, values in table.columns.items():
        np.testing.assert_array_equal(again.columns[name], values)


def test_devices_that_share_a_link_are_never_worked_out_each_alone(tmp_path: Path) -> None:
    config = config_with(tmp_path, {"network": {"server": {"mbps": [1.0, 1.0]}}})
    world = build_world(config, "x.yaml")
    log = Waves()
    simulate(federation_of(config, world, NullTrainer(world.model.num_blocks)), log)
    assert log.num_waves == 0
    assert len(log.named("update_received")) == 3 * 14
