"""What the engine costs: timing-only runs against bare SimPy, and how they grow.

python benchmarks/bench_engine.py [runs] [devices]

Each measurement is a process of its own, and what is compared is measured in turns. CPU seconds of
the whole process, start and imports included, unless said otherwise. ``bare SimPy`` plays the same
plans without FedClock: for each one process, three timeouts and an entry in a store.
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
import simpy
import yaml
from rich.console import Console

from simulator.config.experiment import load_experiment
from simulator.log.progress import PlainReporter
from simulator.runs.run import prepare, run
from simulator.workers.trainers import Trainers

ROUNDS = 10


def config(devices: int, cohort: int, rounds: int) -> dict[str, Any]:
    """A fleet on real links, of which a cohort is asked in every round."""
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
        "evaluation": {"every": rounds},
        "stop": {"rounds": rounds},
        "strategy": {"kind": "fedlora", "rank": 4},
    }


def fedclock(devices: int, cohort: int, rounds: int) -> None:
    """A run from its YAML to its folder."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.yaml"
        file.write_text(yaml.safe_dump(config(devices, cohort, rounds)), "utf-8")
        (one,) = load_experiment(file)
        with Trainers(1) as trainers:
            report = PlainReporter(Console(quiet=True))
            run(prepare(one, Path(folder) / "run", str(file)), trainers=trainers, report=report)


def bare(devices: int, cohort: int, rounds: int) -> None:
    """The same number of plans in SimPy alone, with durations drawn beforehand."""
    rng = np.random.default_rng(0)
    env = simpy.Environment()

    def client(inbox: simpy.Store, device: int, phases_s: list[float]) -> Iterator[Any]:
        for phase_s in phases_s:
            yield env.timeout(phase_s)
        inbox.put(device)

    def server() -> Iterator[Any]:
        inbox = simpy.Store(env)
        for _ in range(rounds):
            for device, phases_s in enumerate(rng.random((cohort, 3)).tolist()):
                env.process(client(inbox, device, phases_s))
            for _ in range(cohort):
                yield inbox.get()

    env.run(until=env.process(server()))


KINDS: dict[str, Callable[[int, int, int], None]] = {"fedclock": fedclock, "bare": bare}


def measured(kind: str, devices: int, cohort: int, rounds: int) -> tuple[float, float]:
    """CPU seconds and peak memory in GB of a process of its own."""
    command = [sys.executable, __file__, "one", kind, *map(str, (devices, cohort, rounds))]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    cpu_s, peak_gb = json.loads(ended.stdout.splitlines()[-1])
    return float(cpu_s), float(peak_gb)


def one(kind: str, *size: int) -> None:
    """Run, and print what ``measured`` reads."""
    began_s = time.process_time() if kind == "bare" else 0.0  # imports count against us only
    KINDS[kind](*size)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps([time.process_time() - began_s, peak_gb]))


def told(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main(num_runs: int = 3, cohort: int = 100_000) -> None:
    """Print every measurement with median and range."""
    sizes = {
        "bare SimPy": ("bare", cohort, cohort, ROUNDS),
        "FedClock": ("fedclock", cohort, cohort, ROUNDS),
        "a tenth of it": ("fedclock", cohort // 10, cohort // 10, ROUNDS),
        "a million devices": ("fedclock", 1_000_000, 1_000, 1),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sizes}
    for _ in range(num_runs):
        for name, (kind, *size) in sizes.items():
            found[name].append(measured(kind, *size))
            print(f"{name}: {found[name][-1][0]:.2f} s", file=sys.stderr)
    for name, (_, devices, cohort, rounds) in sizes.items():
        cpu_s, peak_gb = (list(column) for column in zip(*found[name], strict=True))
        print(f"{name}: {devices} devices, {cohort} of them in each of {rounds} rounds: "
              f"{told(cpu_s)} s, {told(peak_gb)} GB")  # fmt: skip
    ours, base, tenth = (
        [cpu_s for cpu_s, _ in found[name]] for name in ("FedClock", "bare SimPy", "a tenth of it")
    )
    rates = [b / o for b, o in zip(base, ours, strict=True)]
    print(f"plans a second, as a share of bare SimPy's: {told(rates)}")
    growth = [o / t for o, t in zip(ours, tenth, strict=True)]
    print(f"time for ten times the devices: {told(growth)} times")


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        one(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        main(*map(int, sys.argv[1:]))
