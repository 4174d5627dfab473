"""Measures what the engine costs: timing-only runs against bare SimPy, and how they grow.

python benchmarks/bench_engine.py [RUNS] [DEVICES]

Each measurement is a process of its own, and what is compared is measured in turns. CPU seconds of
the whole process, start and imports included. ``bare SimPy`` plays plans without FedClock: for each
one process, three timeouts and an entry in a store; its imports do not count. A share is plans a
CPU second over those of bare SimPy in the same turn. DEVICES is the largest cohort; most rows take
a tenth of it, and plan as often as bare SimPy: ten times each device. The last column is what is
aimed at: the least share, or the most seconds, GB or growth.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import simpy
import yaml
from rich.console import Console

from simulator.config.experiment import load_experiment
from simulator.log.progress import PlainReporter
from simulator.runs.preparation import prepare
from simulator.runs.run import run
from simulator.workers.trainers import Trainers

ROUNDS = 10
DAY = {"generator": {"kind": "on_off", "online_s": 3000.0, "offline_s": 1000.0}, "start": "random"}
Config = dict[str, Any]


def config(devices: int, cohort: int) -> Config:
    """Return the config of a fleet on real links, of which a cohort is asked in every round."""
    return {
        "name": "bench",
        "task": {"model": "tiny", "max_length": 16},
        "training": "none",
        "shards": {"kind": "drawn", "examples": 64},
        "local": {"batch_size": 8, "steps": 4},
        "fleet": {
            "devices": [
                {"profile": "jetson-nano-maxn", "count": devices // 2, "link": "lte"},
                {"profile": "jetson-tx2-maxn", "count": devices - devices // 2, "link": "5g"},
            ]
        },
        "pacing": {"kind": "synchronous", "cohort": cohort},
        "evaluation": {"every": ROUNDS},
        "stop": {"rounds": ROUNDS},
        "strategy": {"kind": "fedlora", "rank": 4},
    }


def plain(devices: int) -> Config:
    """Return the config of a run that asks every device in every round, and interrupts none."""
    return config(devices, devices)


def met(made: Config, **conditions: Any) -> Config:
    """Return the same config with these conditions for its devices."""
    for group in made["fleet"]["devices"]:
        group.update(conditions)
    return made


def realistic(devices: int) -> Config:
    """Return the config of half a fleet a round, with latency, deadline, absence and contention."""
    speeds = Path(tempfile.mkdtemp()) / "speed.csv"
    rows = [f"{0.7 * k:.1f},{(1.0, 0.6, 0.9, 0.3, 0.8)[k % 5]}" for k in range(200)]
    speeds.write_text("\n".join(["time_s,speed_share", *rows]) + "\n", "utf-8")
    busy = {"source": str(speeds), "start": "random"}
    made = met(config(devices, devices // 2), latency=0.05, availability=DAY, speed=busy)
    made["pacing"]["deadline_s"] = 5.0
    return made


def available(devices: int) -> Config:
    """Return the config of half a fleet a round, whose devices come and go."""
    return met(config(devices, devices // 2), availability=DAY)


def fedbuff(devices: int) -> Config:
    """Return the config of FedBuff with a quarter of a fleet at work, whose devices come and go."""
    made = available(devices)
    made["pacing"] = {"kind": "fedbuff", "concurrency": devices // 4, "size": devices // 10}
    made["stop"]["rounds"] = made["evaluation"]["every"] = 10 * ROUNDS
    return made


def fedasync(devices: int) -> Config:
    """Return the config of FedAsync with a quarter of a fleet at work."""
    made = available(devices)
    made["pacing"] = {"kind": "fedasync", "concurrency": devices // 4}
    made["stop"]["rounds"] = made["evaluation"]["every"] = devices * ROUNDS
    return made


def shared(flows: int) -> Config:
    """Return the config of a run whose devices share the server's link."""
    made = plain(flows)
    made["network"] = {"server": {"mbps": [100.0, 100.0]}}
    return made


def planned_by(kind: str) -> Callable[[int], Config]:
    """Return the config of a strategy that plans for each device, in a run without events."""

    def made(devices: int) -> Config:
        return plain(devices) | {"strategy": {"kind": kind, "rank": 4}}

    return made


def million(devices: int) -> Config:
    """Return the config of a fleet with calendars and batteries, of which 1,000 are asked once."""
    battery = {"capacity_j": 40_000.0, "charging": DAY}
    made = met(config(devices, 1_000), availability=DAY, battery=battery)
    made["stop"]["rounds"] = 1
    return made


WORLDS: dict[str, Callable[[int], Config]] = {
    "plain": plain,
    "realistic": realistic,
    "available": available,
    "fedbuff": fedbuff,
    "fedasync": fedasync,
    "shared": shared,
    "fedquad": planned_by("fedquad"),
    "haflq": planned_by("haflq"),
    "million": million,
}


def fedclock(world: str, devices: int) -> int:
    """Carry out a run from its YAML to its folder, and return its number of plans."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.yaml"
        file.write_text(yaml.safe_dump(WORLDS[world](devices)), "utf-8")
        (one,) = load_experiment(file)
        with Trainers(1) as trainers:
            report = PlainReporter(Console(quiet=True))
            run(prepare(one, Path(folder) / "run", str(file)), trainers=trainers, report=report)
        return int(pq.read_metadata(Path(folder) / "run" / "clients.parquet").num_rows)


def bare(cohort: int) -> int:
    """Simulate the plans of ten rounds in SimPy alone, with durations drawn beforehand."""
    rng = np.random.default_rng(0)
    env = simpy.Environment()

    def client(inbox: simpy.Store, device: int, phases_s: list[float]) -> Iterator[Any]:
        for phase_s in phases_s:
            yield env.timeout(phase_s)
        inbox.put(device)

    def server() -> Iterator[Any]:
        inbox = simpy.Store(env)
        for _ in range(ROUNDS):
            for device, phases_s in enumerate(rng.random((cohort, 3)).tolist()):
                env.process(client(inbox, device, phases_s))
            for _ in range(cohort):
                yield inbox.get()

    env.run(until=env.process(server()))
    return cohort * ROUNDS


def one(world: str, devices: int) -> None:
    """Carry out a run, and print what ``measured`` reads."""
    # FedClock's imports count as its time; those of the bare simulation do not.
    began_s = time.process_time() if world == "bare" else 0.0
    plans = bare(devices) if world == "bare" else fedclock(world, devices)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps([time.process_time() - began_s, peak_gb, plans]))


def measured(world: str, devices: int) -> tuple[float, float, int]:
    """Return the CPU seconds, peak memory in GB and plans of a run in a process of its own."""
    command = [sys.executable, __file__, "one", world, str(devices)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    cpu_s, peak_gb, plans = json.loads(ended.stdout.splitlines()[-1])
    return cpu_s, peak_gb, plans


def told(values: list[float], digits: int = 2) -> str:
    """Return the median and range of values as text."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main(num_runs: int = 5, largest: int = 100_000) -> None:
    """Print the median and range of every measurement."""
    tenth = largest // 10
    rows = {
        ("bare", tenth): "",
        ("plain", tenth): "",
        ("realistic", tenth): "0.5",
        ("fedbuff", tenth): "0.25",
        ("fedasync", tenth): "0.25",
        ("shared", tenth // 10): "0.05",
        ("fedquad", tenth): "0.4",
        ("haflq", tenth): "0.25",
        ("available", tenth): "",
        ("available", largest): "60 s, 2 GB",
        ("million", 10 * largest): "20 s, 3 GB",
    }
    found: dict[tuple[str, int], list[tuple[float, float, int]]] = {row: [] for row in rows}
    for _ in range(num_runs):
        for row in rows:
            found[row].append(measured(*row))
            print(row, found[row][-1], file=sys.stderr)
    bare_rates = [plans / cpu_s for cpu_s, _, plans in found["bare", tenth]]
    print("| world | devices | plans | CPU s | peak GB | share of bare SimPy | aim |")
    print("|---|---|---|---|---|---|---|")
    for (world, devices), values in found.items():
        cpu_s, peak_gb = [value[0] for value in values], [value[1] for value in values]
        plans = values[0][2]
        shares = [plans / spent_s / rate for spent_s, rate in zip(cpu_s, bare_rates, strict=True)]
        print(f"| {world} | {devices:,} | {plans:,} | {told(cpu_s)} | {told(peak_gb)} "
              f"| {told(shares, 3)} | {rows[world, devices]} |")  # fmt: skip
    pairs = zip(found["available", largest], found["available", tenth], strict=True)
    print(
        f"time for ten times the devices: {told([large[0] / small[0] for large, small in pairs])}, "
        f"aim 11"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        one(sys.argv[2], int(sys.argv[3]))
    else:
        main(*map(int, sys.argv[1:]))
