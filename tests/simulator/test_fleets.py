"""A config builds fleets by counts, shares, mixes, tables and generators, and at any size."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from algorithms.registry import STRATEGIES
from analysis.calibration.calibrate import save
from devices.cost.measured import MeasuredCost
from devices.fleet.fleet import Fleet
from simulator.config.experiment import ConfigError, load_experiment
from simulator.world.build import World, build_world
from tests.devices.cost.test_measured import PROFILE, table
from tests.torture import long
from traces.availability import ALWAYS, AvailabilityTrace, availability_text
from traces.generators.model_file import model_text
from traces.generators.patterns import pattern_model

BASE = {
    "name": "fleets",
    "task": {"model": "tiny", "max_length": 16},
    "training": "none",
    "local": {"batch_size": 4, "steps": 1},
    "pacing": {"kind": "synchronous", "cohort": 1},
    "stop": {"rounds": 2},
    "strategy": {"kind": "fedlora"},
}
PI = {"profile": "raspberry-pi-4-2gb", "link": "wifi"}


def world(tmp_path: Path, fleet: dict, **changed: Any) -> World:
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump({**BASE, "fleet": fleet, **changed}), "utf-8")
    (config,) = load_experiment(file)
    return build_world(config, "x.yaml")


def refused(tmp_path: Path, fleet: dict, **changed: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        world(tmp_path, fleet, **changed)
    return str(caught.value)


def profiles(fleet: Fleet) -> dict[str, int]:
    names = [device.profile.name for device in fleet]
    return {name: names.count(name) for name in dict.fromkeys(names)}


def test_shares_become_counts_by_the_largest_remainder(tmp_path: Path) -> None:
    fleet = {
        "size": 11,
        "devices": [
            {**PI, "share": 0.5},
            {**PI, "profile": "jetson-nano-maxn", "share": 0.3},
            {**PI, "profile": "raspberry-pi-5-8gb", "share": 0.2},
            {**PI, "profile": "jetson-tx2-maxn", "count": 1},
        ],
    }
    assert list(profiles(world(tmp_path, fleet).fleet).values()) == [5, 3, 2, 1]


@pytest.mark.parametrize(
    ("fleet", "message"),
    [
        ({"size": 9, "devices": [{**PI, "share": 0.5}]}, "shares must add up to 1, got 0.5"),
        ({"devices": [{**PI, "share": 1.0}]}, "give size and shares of it together, or neither"),
        ({"size": 9, "devices": [PI]}, "give size and shares of it together, or neither"),
        ({"devices": [{"profile": "x", "mix": "y", "link": "wifi"}]}, "of profile, device, mix"),
        ({"devices": [{"profile": "raspberry-pi-4-2gb"}]}, "fleet.devices.0: give link"),
        ({"devices": [{**PI, "link": {"start": "random"}}]}, "one of source, generator, mbps"),
        ({"memory_share": 0.5}, "give devices or recorded, exactly one of the two"),
        ({"devices": [{"mix": "mine", "link": "wifi"}]}, "a mix must be one of jetson-testbed"),
        ({"devices": [{**PI, "latency": -1}]}, "must be a text or at least 0 and finite, got -1"),
        ({"devices": [{**PI, "speed": "x.csv"}]}, "with the columns speed_share, or a folder"),
        (
            {"devices": [{**PI, "availability": "nowhere.csv"}]},
            "with the columns device_id,start_s,end_s,state, or a folder",
        ),
        (
            {"devices": [{**PI, "count": 9, "link": {"source": "wifi",
                                                     "sample": "without_replacement"}}]},
            r"fleet.devices.0.link: a pool drawn from without replacement must hold a trace for "
            r"each of the 9 devices that draw from it, got \d in wifi",
        ),
    ],
)  # fmt: skip
def test_impossible_fleet_is_refused(tmp_path: Path, fleet: dict[str, Any], message: str) -> None:
    import re

    found = refused(tmp_path, fleet)
    assert re.search(message, found), found


@pytest.mark.parametrize(
    ("cell", "network", "message"),
    [
        ("home", {}, r"fleet.devices.0.cell must be one of those in network.cells \(none is"),
        ("home", {"cells": {"street": {"mbps": [9, 9]}}}, r"\(street\), got home"),
        ("a", {"cells": {"a": {"mbps": [9, 9], "source": "lte"}}}, "give exactly one of mbps, s"),
        (
            "a",
            {"cells": {"a": {"mbps": [9, 0]}}},
            "mbps.1 must be above 0 and finite, got 0",
        ),
        ("a", {"cells": {"a": {"source": "wifi"}}}, "network.cells.a: source must be one trace"),
        (None, {"server": {"source": "no-such"}}, "network.server: .*no-such"),
    ],
)
def test_impossible_network_is_refused(
    tmp_path: Path, cell: str | None, network: dict[str, Any], message: str
) -> None:
    said = refused(tmp_path, {"devices": [{**PI, "cell": cell}]}, network=network)
    assert re.search(message, said), said


def test_a_list_of_wrong_groups_alone_is_not_called_empty(tmp_path: Path) -> None:
    said = refused(tmp_path, {"devices": [{"profile": "raspberry-pi-4-2gb"}]})
    assert "at least" not in said


def test_groups_share_the_cells_that_they_name(tmp_path: Path) -> None:
    fleet = {"devices": [{**PI, "count": 2, "cell": "b"}, PI, {**PI, "cell": "a"}]}
    network = {
        "server": {"mbps": [80, 40]},
        "cells": {"a": {"mbps": [8, 8]}, "b": {"mbps": [4, 4]}},
    }
    shared = world(tmp_path, fleet, network=network).shared_links
    names = [[link.name for link in shared.of(device)] for device in range(4)]
    assert names == [["b", "server"], ["b", "server"], ["server"], ["a", "server"]]
    assert shared.server.uplink.rate_at(0) == 40e6 / 8


def test_a_shared_network_is_a_condition_of_the_run(tmp_path: Path) -> None:
    fleet = {"devices": [PI]}
    free = world(tmp_path, fleet).conditions_hash
    narrow = world(tmp_path, fleet, network={"server": {"mbps": [1, 1]}}).conditions_hash
    assert free != narrow


@pytest.fixture
def calibrated(tmp_path: Path) -> Path:
    """Return a profile of one's own, and beside it the steps that it was fitted to."""
    file = tmp_path / "mine.toml"
    save(file, table(), PROFILE)
    return file


def test_calibrated_profile_is_named_by_its_file(tmp_path: Path, calibrated: Path) -> None:
    own = world(tmp_path, {"devices": [{**PI, "profile": str(calibrated)}]})
    assert own.fleet[0].profile.measured is not None


def test_measured_steps_are_the_cost_of_devices_that_they_were_measured_on(
    tmp_path: Path, calibrated: Path
) -> None:
    cost = {"kind": "measured", "table": str(calibrated.with_suffix(".csv"))}
    fleet = {"devices": [{**PI, "profile": str(calibrated)}]}
    own = world(tmp_path, fleet, cost=cost)
    assert isinstance(own.cost_model, MeasuredCost)
    assert own.conditions_hash != world(tmp_path, fleet).conditions_hash


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        ({"kind": "measured"}, "give a table with kind measured, and none with closed_form"),
        (
            {"kind": "measured", "table": "no.csv"},
            r"cost.table: /.*/no\.csv: the file cannot be read",
        ),
        ({"compute_bits": 16}, r"cost.compute_bits must be one of 32 for test-1e\+09, got 16"),
    ],
)
def test_impossible_cost_is_refused(
    tmp_path: Path, calibrated: Path, cost: dict[str, Any], message: str
) -> None:
    devices = [{**PI, "profile": str(calibrated)}]
    said = refused(tmp_path, {"devices": devices}, cost=cost)
    assert re.search(message, said), said


def test_two_profiles_of_one_name_are_refused(tmp_path: Path, calibrated: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(calibrated.read_text("utf-8").replace("overhead_s = 0", "overhead_s = 1"))
    devices = [{**PI, "profile": str(file)} for file in (calibrated, other)]
    assert "must not have one name, test-1e+09" in refused(tmp_path, {"devices": devices})


def test_without_replacement_every_device_has_a_trace_of_its_own(tmp_path: Path) -> None:
    link = {"source": "wifi", "sample": "without_replacement"}
    size = len(set(world(tmp_path, {"devices": [{**PI, "count": 50}]}).fleet.link.index.tolist()))
    fleet = world(tmp_path, {"devices": [{**PI, "count": size - 1, "link": link}, {**PI,
                             "link": link}]}).fleet  # fmt: skip
    assert sorted(fleet.link.index.tolist()) == list(range(size))


def test_mix_draws_profiles_by_their_shares(tmp_path: Path) -> None:
    fleet = {"devices": [{"mix": "jetson-testbed", "link": "wifi", "count": 400}]}
    found = profiles(world(tmp_path, fleet, shards={"min_examples": 1}).fleet)
    for profile, share in [("jetson-tx2-maxn", 3 / 8), ("jetson-agx-xavier-maxn", 1 / 8)]:
        # Five standard deviations of a share of 400.
        assert found[profile] / 400 == pytest.approx(
            share, abs=5 * (share * (1 - share) / 400) ** 0.5
        )


def test_spread_of_speeds_is_drawn_by_its_law(tmp_path: Path) -> None:
    spread = {"kind": "lognormal", "sigma": 0.5}
    fleet = {"devices": [{**PI, "count": 400, "speed_spread": spread}]}
    found = world(tmp_path, fleet, shards={"min_examples": 1}).fleet
    logs = np.log(found.speed_factor)
    assert logs.mean() == pytest.approx(0.0, abs=5 * 0.5 / 20)
    assert logs.std() == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(800))
    assert found[7].speed.at(0.0) == found.speed_factor[7]


def test_generated_links_and_availability_are_pools_of_the_seed(tmp_path: Path) -> None:
    group = {
        **PI,
        "count": 6,
        "link": {"generator": {"kind": "markov", "technology": "lte-driving"}, "variants": 3},
        "availability": {"generator": {"kind": "diurnal"}, "variants": 2},
    }
    first, again = (world(tmp_path, {"devices": [group]}).fleet for _ in range(2))
    other = world(tmp_path, {"devices": [group]}, seed=1).fleet
    assert len(first.link.pool) == 3
    assert first.conditions_hash() == again.conditions_hash() != other.conditions_hash()
    assert first[0].availability is not ALWAYS
    assert set(first.availability.offset_s.tolist()) == {0.0}  # all devices share one clock


TABLE = """device_id,profile,link,speed,memory_bytes,downlink_mbps,uplink_mbps
a,raspberry-pi-4-2gb,wifi,2.0,,,
b,,,0.5,4000000000,10,5
c,jetson-nano-maxn,,,,20,8
"""


def test_table_makes_a_device_of_each_row_and_the_group_says_the_rest(tmp_path: Path) -> None:
    (tmp_path / "devices.csv").write_text(TABLE, "utf-8")
    group = {"table": str(tmp_path / "devices.csv"), "profile": "raspberry-pi-5-8gb"}
    fleet = world(tmp_path, {"memory_share": 0.5, "devices": [group]}).fleet
    assert list(profiles(fleet)) == ["raspberry-pi-4-2gb", "raspberry-pi-5-8gb", "jetson-nano-maxn"]
    assert fleet.speed_factor.tolist() == [2.0, 0.5, 1.0]
    assert fleet[1].memory_budget_bytes == 2_000_000_000
    assert fleet[1].link.downlink.rate_at(0.0) == 1.25e6
    assert fleet[2].link.uplink.rate_at(0.0) == 1e6


@long
def test_rows_of_a_large_table_are_drawn_by_seed(tmp_path: Path) -> None:
    (tmp_path / "devices.csv").write_text(TABLE, "utf-8")
    group = {"table": str(tmp_path / "devices.csv"), "profile": "raspberry-pi-5-8gb", "count": 2}
    found = {
        tuple(profiles(world(tmp_path, {"devices": [group]}, seed=seed).fleet))
        for seed in range(12)
    }
    assert len(found) == 3
    message = refused(tmp_path, {"devices": [{**group, "count": 4}]})
    assert "a table must hold a row for each of the 4 devices, got 3 rows" in message


def test_row_without_a_profile_or_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "devices.csv").write_text(TABLE, "utf-8")
    message = refused(tmp_path, {"devices": [{"table": str(tmp_path / "devices.csv")}]})
    assert "the row of device b must name a profile, or the group must, got neither" in message


def test_traces_of_files_reach_the_devices(tmp_path: Path) -> None:
    (tmp_path / "speed.csv").write_text("time_s,speed_share\n0,1\n10,0.25\n", "utf-8")
    (tmp_path / "latency.csv").write_text("time_s,latency_s\n0,0.05\n", "utf-8")
    (tmp_path / "memory.csv").write_text("time_s,free_memory_share\n0,1\n5,0.5\n", "utf-8")
    trace = AvailabilityTrace.of([(0.0, 30.0)], 60.0)
    (tmp_path / "online.csv").write_text(availability_text({"a": trace}), "utf-8")
    group = {
        **PI,
        "speed": {"source": str(tmp_path / "speed.csv"), "start": "beginning"},
        "latency": str(tmp_path / "latency.csv"),
        "free_memory": {
            "source": str(tmp_path / "memory.csv"), "start": "beginning", "at_end": "stop"
        },
        "availability": str(tmp_path / "online.csv"),
        "battery": {
            "capacity_j": 40_000, "initial_share": [0.5, 1.0],
            "charging": str(tmp_path / "online.csv"),
        },
    }  # fmt: skip
    device = world(tmp_path, {"devices": [group]}).fleet[0]
    assert [device.speed.at(t) for t in (0, 10, 20)] == [1, 0.25, 1]
    assert device.latency.at(1e6) == 0.05
    assert [device.free_memory.at(t) for t in (0, 5, 1e6)] == [1, 0.5, 0.5]
    assert [device.availability.is_online(t) for t in (0, 30, 60)] == [True, False, True]
    assert 0.5 <= device.battery.initial_share <= 1.0


def test_one_more_group_moves_no_other_device(tmp_path: Path) -> None:
    few = world(tmp_path, {"memory_share": [0.1, 0.5], "devices": [{**PI, "count": 4}]}).fleet
    more = world(tmp_path, {"memory_share": [0.1, 0.5], "devices": [{**PI, "count": 4}, PI]}).fleet
    assert more.memory_budget_bytes[:4].tolist() == few.memory_budget_bytes.tolist()
    assert more.link.index[:4].tolist() == few.link.index.tolist()
    assert more.link.offset_s[:4].tolist() == few.link.offset_s.tolist()


def test_a_million_devices_are_arrays_until_one_is_asked_for(tmp_path: Path) -> None:
    fleet = {"memory_share": [0.1, 0.5], "devices": [{**PI, "count": 1_000_000}]}
    found = world(tmp_path, fleet, shards={"kind": "drawn", "examples": 20}).fleet
    assert len(found) == 1_000_000
    assert len(found._made) <= 1  # the one whose profile the smallest plan was priced for
    device = found[987_654]
    assert len(device.examples) == 20
    assert device.memory_budget_bytes == found.memory_budget_bytes[987_654]


def test_rows_of_a_table_scatter_each_by_its_own(tmp_path: Path) -> None:
    rows = "".join(f"d{k},raspberry-pi-4-2gb\n" for k in range(5))
    (tmp_path / "devices.csv").write_text(f"device_id,profile\n{rows}", "utf-8")
    group = {"table": str(tmp_path / "devices.csv"), "link": "wifi"}
    fleet = world(tmp_path, {"devices": [{**group, "speed_spread": {"kind": "lognormal"}}]}).fleet
    assert len(set(fleet.speed_factor.tolist())) == 5


def test_conditions_are_the_same_for_every_strategy_and_others_for_another_seed(
    tmp_path: Path,
) -> None:
    group = {**PI, "count": 4, "availability": {"generator": {"kind": "diurnal"}, "variants": 2}}
    given = {"faults": {"crash": {"per_hour": 2}, "leave": {"per_hour": 1}}}
    hashes = {
        world(tmp_path, {"devices": [group]}, strategy={"kind": kind}, **given).conditions_hash
        for kind in STRATEGIES
    }
    assert len(hashes) == 1
    other = world(tmp_path, {"devices": [group]}, seed=1, **given).conditions_hash
    assert other not in hashes


def test_folder_of_an_import_and_a_fitted_generator_serve_as_availability(tmp_path: Path) -> None:
    trace = AvailabilityTrace.of([(0.0, 30.0)], 86400.0)
    folder = tmp_path / "imported"
    folder.mkdir()
    (folder / "online.csv").write_text(availability_text({"a": trace, "b": trace}), "utf-8")
    (folder / "online-models.csv").write_text("device_id,model\na,X\n", "utf-8")
    assert len(world(tmp_path, fleet_of(folder)).fleet.availability.pool) == 2
    toml = tmp_path / "fitted.toml"
    toml.write_text(model_text(pattern_model("charging", 1), ["x"]), "utf-8")
    assert len(world(tmp_path, fleet_of(toml)).fleet.availability.pool) == 64
    (folder / "online.csv").unlink()
    assert "a folder of availability must hold CSV files" in refused(tmp_path, fleet_of(folder))


def fleet_of(availability: Path) -> dict:
    return {"devices": [{**PI, "availability": str(availability)}]}


def test_what_the_framework_takes_comes_off_the_share_of_memory(tmp_path: Path) -> None:
    """2 GB at a half leave 1 GB, of which it takes 300 MB; where it takes all, nothing is left."""
    group = {**PI, "memory_bytes": 2 * 10**9, "memory_share": 0.5}
    fleets = [
        world(tmp_path, {"devices": [{**group, **more}]}).fleet
        for more in ({}, {"runtime_bytes": 3 * 10**8})
    ]
    assert [fleet.memory_budget_bytes.tolist() for fleet in fleets] == [[10**9], [7 * 10**8]]
    assert fleets[0].conditions_hash() != fleets[1].conditions_hash()
    with pytest.raises(ConfigError, match=r"must hold at least the smallest plan.*least 0\.0 MB"):
        world(tmp_path, {"devices": [{**group, "runtime_bytes": 10**9}]})
