"""Plans worked out ahead in arrays are those that a process for each device lives through."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product, zip_longest
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
from simulator.engine import server
from simulator.engine.assignment import Assignment
from simulator.engine.device import DeviceContext
from simulator.engine.plan_timeline import stages_of
from simulator.engine.server import simulate
from simulator.log.block import Block
from simulator.log.cohort_timeline import CohortEvents
from simulator.log.records import ClientTable, DeviceRecord
from simulator.log.run_folder import RunFolder
from simulator.runs.run import federation_of
from simulator.world.build import build_world
from tests.simulator.small import Memory, OneByOne, make_device, make_federation
from tests.torture import some
from traces.steps import StepTrace

FLEET = [
    {"profile": "jetson-nano-5w", "count": 7, "link": "lte-driving"},
    {"profile": "jetson-tx2-maxn", "count": 5, "link": "5g"},
    # These devices are all alike, so their events fall on the same instants.
    {"profile": "jetson-tx2-maxn", "count": 6, "link": {"mbps": [10.0, 5.0]}},
    {"profile": "raspberry-pi-5-8gb", "count": 2, "link": "wifi", "speed": 0.7},
    {
        "profile": "raspberry-pi-5-8gb",
        "count": 2,
        "link": "wifi",
        "speed_spread": {"kind": "uniform", "lowest": 0.5, "highest": 2.0},
    },
]


class Counted(Memory):
    """Counts the plans that are worked out ahead."""

    num_ahead = 0

    def block(self, block: Block) -> None:
        cohorts = [piece for piece in block.pieces if isinstance(piece, CohortEvents)]
        self.num_ahead += sum(len(events.timeline.devices) for events in cohorts)
        for one in block.each_round():
            self.events += one.events


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
    """Return the event log and the tables of a run."""
    world = build_world(config, "x.yaml")
    store = RunFolder(folder, config.resolved(), {})
    store.fleet(DeviceRecord.columns(world.fleet))
    simulate(federation_of(config, world, trainer(world.model.num_blocks)), store)
    store.close("done", {})
    tables = [pq.read_table(folder / f"{name}.parquet") for name in ("clients", "rounds")]
    return (folder / "events.jsonl").read_text("utf-8"), tables


def num_ahead(config: Any) -> int:
    world = build_world(config, "x.yaml")
    log = Counted()
    simulate(federation_of(config, world, NullTrainer(world.model.num_blocks)), log)
    return log.num_ahead


def assert_equal_routes(config: Any, folder: Path) -> None:
    """Assert that events and tables are equal to the bit, worked out ahead or one by one."""
    events, tables = written(config, NullTrainer, folder / "ahead")
    other_events, other_tables = written(config, OneByOne, folder / "one_by_one")
    pairs = zip_longest(events.splitlines(), other_events.splitlines())
    assert next((pair for pair in pairs if pair[0] != pair[1]), None) is None
    for table, other in zip(tables, other_tables, strict=True):
        assert table.schema.equals(other.schema)
        for name in table.column_names:
            pairs = zip_longest(table[name].to_pylist(), other[name].to_pylist())
            found = next((pair for pair in pairs if repr(pair[0]) != repr(pair[1])), None)
            assert found is None, name


def assert_equal_to_processes(config: Any, folder: Path, patch: pytest.MonkeyPatch) -> int:
    """The log is the same where each plan is a process; return how many had a timeline."""
    num_plans = 0

    def counted(context: DeviceContext, work: Assignment) -> Any:
        nonlocal num_plans
        stages = stages_of(context, work)
        num_plans += stages is not None
        return stages

    patch.setattr(server, "stages_of", counted)
    events, tables = written(config, OneByOne, folder / "timelines")
    patch.setattr(server, "stages_of", lambda context, work: None)
    other_events, other_tables = written(config, OneByOne, folder / "processes")
    assert events == other_events
    for table, other in zip(tables, other_tables, strict=True):
        assert repr(table.to_pydict()) == repr(other.to_pydict())  # NaN is not equal to itself
    return num_plans


@pytest.mark.parametrize("seed", some(range(4), 4))
@pytest.mark.parametrize("strategy", some(("fedlora", "fedquad", "haflq", "flora"), 2))
def test_a_timeline_leaves_what_processes_leave(tmp_path: Path, seed: int, strategy: str) -> None:
    changed = {"seed": seed, "strategy": {"kind": strategy, "rank": 4}}
    config = config_with(tmp_path, changed)
    assert num_ahead(config) == 3 * 14
    assert_equal_routes(config, tmp_path)


def fleet_with(**changed: Any) -> dict[str, Any]:
    return {"devices": [{**one, **changed} for one in FLEET]}


COMES_AND_GOES = {
    "generator": {"kind": "on_off", "online_s": 2.0, "offline_s": 1.0, "period_s": 60.0},
    "variants": 8,
    "start": "random",
}


def steps_file(folder: Path, name: str, values: list[float]) -> str:
    """Return a file of steps of 0.11 s that is replayed again and again."""
    file = folder / f"{name}.csv"
    rows = [f"{0.11 * k:.2f},{value}" for k, value in enumerate(values)]
    file.write_text("\n".join([f"time_s,{name}", *rows]) + "\n", "utf-8")
    return str(file)


CASES: dict[str, dict[str, Any]] = {
    "latency": {"fleet": {"latency": 0.05}},
    "latency that changes": {"fleet": {"latency": ("latency_s", [0.05, 0.0, 0.3])}},
    "contention": {"fleet": {"speed": ("speed_share", [1.0, 0.2, 0.7])}},
    "memory": {"fleet": {"free_memory": ("free_memory_share", [1.0, 0.5])}},
    "too little memory": {"fleet": {"free_memory": ("free_memory_share", [1.0, 0.5, 1e-6])}},
    "nobody in time": {"deadline_s": 0.01},
    "some late": {"deadline_s": 0.8},
    "some late after latency": {"deadline_s": 0.8, "fleet": {"latency": 0.05}},
    "comes and goes": {"fleet": {"availability": COMES_AND_GOES}},
    "crashes": {"faults": {"crash": {"per_hour": 600.0, "down_s": 1.0}}},
    "links lost": {"faults": {"link_loss": {"per_hour": 600.0, "down_s": 0.5}}},
    "server restarts": {"faults": {"server_restarts": [{"at_s": 0.5, "down_s": 1.0}]}},
    "leaves": {"faults": {"leave": {"schedule": [{"device": 0, "at_s": 1e-3}]}}},
    "battery": {"fleet": {"battery": {"capacity_j": 40.0}}},
    "everything": {
        "deadline_s": 1.5,
        "fleet": {
            "latency": ("latency_s", [0.05, 0.0, 0.3]),
            "speed": ("speed_share", [1.0, 0.2, 0.7]),
            "availability": COMES_AND_GOES,
        },
        "faults": {"crash": {"per_hour": 60.0, "down_s": 1.0}, "leave": {"per_hour": 100.0}},
    },
}


@pytest.mark.parametrize("seed", some(range(2), 2))
@pytest.mark.parametrize("case", some(reversed(CASES), 2))
def test_rounds_of_both_kinds_of_plans_leave_what_processes_leave(
    tmp_path: Path, case: str, seed: int
) -> None:
    changed = dict(CASES[case])
    met = {
        name: {"source": steps_file(tmp_path, *value), "start": "random"}
        if isinstance(value, tuple)
        else value
        for name, value in changed.pop("fleet", {}).items()
    }
    pacing = {"kind": "synchronous", "cohort": 14}
    if "deadline_s" in changed:
        pacing["deadline_s"] = changed.pop("deadline_s")
    config = config_with(
        tmp_path, {"seed": seed, "fleet": fleet_with(**met), "pacing": pacing, **changed}
    )
    assert (num_ahead(config) > 0) is (case not in ("battery", "too little memory"))
    assert_equal_routes(config, tmp_path)


PACINGS: dict[str, dict[str, Any]] = {
    "synchronous": {"cohort": 14},
    "deadline": {"kind": "synchronous", "cohort": 14, "deadline_s": 0.8},
    "over_selection": {"cohort": 8},
    "semi_synchronous": {"cohort": 14, "period_s": 0.7},
    "fedbuff": {"concurrency": 10, "size": 6},
    "fedasync": {"concurrency": 10},
}
MET = {
    "nothing": {},
    "lockstep": {"fleet": {"devices": [{**FLEET[2], "count": 22, "latency": 0.1}]}},
    "latency": {"fleet": fleet_with(latency=0.05)},
    "comes and goes": {
        "fleet": fleet_with(availability=COMES_AND_GOES, latency=0.05),
        "faults": {"crash": {"per_hour": 60.0, "down_s": 1.0}, "leave": {"per_hour": 100.0}},
    },
    "server restarts": CASES["server restarts"],
}


@pytest.mark.parametrize(("met", "pacing"), some(product(MET, PACINGS), 4))
def test_a_plan_that_nothing_cuts_leaves_what_its_process_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pacing: str, met: str
) -> None:
    paced = {"kind": pacing} | PACINGS[pacing]
    config = config_with(tmp_path, {**MET[met], "pacing": paced, "stop": {"rounds": 5}})
    assert assert_equal_to_processes(config, tmp_path, monkeypatch) > 0


@pytest.mark.parametrize(("met", "pacing"), some(product(MET, PACINGS), 4))
def test_rounds_that_are_written_in_blocks_are_those_that_are_written_one_by_one(
    tmp_path: Path, pacing: str, met: str
) -> None:
    paced, every = {"kind": pacing} | PACINGS[pacing], {"every": 3}
    changed = {**MET[met], "pacing": paced, "stop": {"rounds": 20}, "evaluation": every}
    assert_equal_routes(config_with(tmp_path, changed), tmp_path)


def test_other_pacings_and_shared_links_work_nothing_out_ahead(tmp_path: Path) -> None:
    for changed in (
        {"pacing": {"kind": "fedbuff", "concurrency": 5, "size": 3}},
        {"network": {"server": {"mbps": [1.0, 1.0]}}},
    ):
        assert num_ahead(config_with(tmp_path, changed)) == 0


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
    begun = [trace.begun_at(offset) if offset else trace for _, _, offset in clocks]
    together = trace.times_to(amounts, starts, offsets)
    pairs = list(zip(begun, clocks, strict=True))
    assert together.tolist() == [own.time_to(amount, start) for own, (amount, start, _) in pairs]
    values_now = trace.values_at(starts, offsets)
    assert values_now.tolist() == [own.at(start) for own, (_, start, _) in pairs]


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
    log = Counted()
    simulate(federation_of(config, world, NullTrainer(world.model.num_blocks)), log)
    assert log.num_ahead == 0
    assert len(log.named("update_received")) == 3 * 14
