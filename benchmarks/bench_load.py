"""Measures the wall seconds and memory to load and summarise many run folders.

python benchmarks/bench_load.py [runs] [rounds] [devices a round]

Writes the folders through the run store, with numbers drawn from a seed: what is timed is reading,
so no simulation is needed.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.metrics.study import study
from analysis.runs.frames import open_runs
from devices.tasks.classification import ACCURACY, LOSS
from simulator.log.records import ClientRecord, DeviceRecord, RoundRecord, columns_of
from simulator.log.run_folder import RunFolder

STRATEGIES = ("fedlora", "fedquad", "haflq", "hetlora")
OUTCOMES = ("aggregated",) * 8 + ("late", "oom")


def drawn(kind: type, rng: np.random.Generator, **given: Any) -> Any:
    """Return a record of this kind, whose numbers are drawn unless they are given."""
    values: dict[str, Any] = {}
    for field in fields(kind):
        low_high = {"int": lambda: int(rng.integers(1, 10**6)), "float": rng.random}
        values[field.name] = low_high.get(str(field.type), lambda: "text")()
    return kind(**{**values, **given})


def write_run(path: Path, strategy: str, seed: int, *, rounds: int, cohort: int) -> None:
    """Write a finished run with random rows of a plausible form."""
    rng = np.random.default_rng((seed, len(strategy)))
    manifest = {
        "experiment": "bench", "label": strategy, "strategy": strategy, "seed": seed,
        "config_hash": f"{sum(map(ord, strategy)):08x}", "conditions_hash": f"c{seed}",
        "model": {"name": "m", "sha256": "1"}, "data": {"name": "d", "sha256": "2"},
    }  # fmt: skip
    config = {"label": strategy, "seed": seed, "strategy": {"kind": strategy, "rank": 8}}
    store = RunFolder(path, config, manifest)
    devices = [drawn(DeviceRecord, rng, device_id=device) for device in range(2 * cohort)]
    store.fleet(columns_of(DeviceRecord, devices))
    first = drawn(ClientRecord, rng)
    for number in range(rounds + 1):
        for _ in range(cohort if number else 0):
            outcome = OUTCOMES[int(rng.integers(len(OUTCOMES)))]
            device = int(rng.integers(2 * cohort))
            start, took = 60.0 * number, 60 * rng.random()
            when = {"started_s": start, "finished_s": start + took, "waiting_s": 60 - took}
            what = {"round": number, "device_id": device, "outcome": outcome}
            store.client(replace(first, **when, **what))
        accuracy = min(1.0, 0.1 + 0.006 * number + 0.02 * rng.normal())
        store.round(drawn(RoundRecord, rng, round=number, closed_s=60.0 * number,
                          metrics={ACCURACY: accuracy, LOSS: 1.0}))  # fmt: skip
    store.close("done", {"num_rounds": rounds, "simulated_s": 60.0 * rounds})


def peak_bytes() -> int:
    """Return the most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def timed(what: str, action: Callable[[], Any]) -> Any:
    """Return what the action returns; print its seconds and the growth of the peak memory."""
    before, began, cpu_began = peak_bytes(), time.perf_counter(), time.process_time()
    result = action()
    took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    grown = (peak_bytes() - before) / 1e6
    print(f"{what:<34} {took_s:6.1f} s ({cpu_s:5.1f} s of CPU)   peak {grown:+7.1f} MB")
    return result


def main() -> None:
    """Write runs, time how they are read, and remove them."""
    given = [int(argument) for argument in sys.argv[1:]]
    num_runs, rounds, cohort = [*given, *(1000, 100, 10)[len(given) :]]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        for number in range(num_runs):
            strategy, seed = STRATEGIES[number % len(STRATEGIES)], number // len(STRATEGIES)
            path = Path(folder) / f"{strategy}-s{seed}"
            write_run(path, strategy, seed, rounds=rounds, cohort=cohort)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        print(f"{num_runs} runs x {rounds} rounds x {cohort} devices: {size / 1e6:.0f} MB, "
              f"written in {time.perf_counter() - began:.0f} s")  # fmt: skip
        runs = timed("open (manifests and schemas)", lambda: open_runs([Path(folder)]))
        timed("rounds, three columns", lambda: runs.rounds(["round", "closed_s", "accuracy"]))
        timed("study: every metric, over seeds", lambda: study(runs, target=0.5))
        frame = timed("clients, all columns", runs.clients)
        print(
            json.dumps({"rows": len(frame), "held_mb": frame.memory_usage(deep=True).sum() / 1e6})
        )


if __name__ == "__main__":
    main()
