"""Measures what a GPU gives real training: stacked clients, steps beside a plain peft loop, memory.

python benchmarks/bench_gpu.py [--compute cuda|cpu] [--model 386m] [--clients 16] [--steps 5]
    [--folder DIR]

The loop is of transformers and peft in bf16, as one writes it by hand; the model is that of
``large_model.py``. Where torch finds no GPU it says what would be measured, and measures nothing;
``--compute cpu`` goes through the same measurements on the processor, to see that they run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from large_model import MODELS, job_of, loop, make_trainer, write_model

from analysis import api

MEASURES = (
    "a round of {clients} clients in one pass, times as fast as the loop (aim: 5 or more)",
    "steps a second of one client, over those of the loop (aim: 0.9 or more)",
    "peak memory of each, in GB",
    "whether conditions and plans of a run are those of the processor",
)
RUN: dict[str, Any] = {
    "name": "bench-gpu",
    "task": {"model": "tiny", "max_length": 16},
    "local": {"batch_size": 4, "steps": 1},
    "fleet": {"devices": [{"profile": "jetson-nano-5w", "count": 4, "link": "lte"}]},
    "pacing": {"kind": "synchronous", "cohort": 4},
    "evaluation": {"examples": 16},
    "stop": {"rounds": 2},
    "strategy": {"kind": "fedquad", "rank": 2},
}


class Gauge:
    """A gauge measures the seconds and peak memory of work on one kind of device."""

    def __init__(self, compute: str) -> None:
        import torch

        self.is_gpu = compute == "cuda"
        self._cuda = torch.cuda

    def wait(self) -> None:
        """Return when the device has finished its work."""
        if self.is_gpu:
            self._cuda.synchronize()

    def peak_gb(self, work: Callable[[], Any]) -> tuple[Any, str]:
        """Return what the work returns, and the peak of the GPU's memory meanwhile, in words."""
        if not self.is_gpu:
            return work(), "not measured on the processor: bench_memory.py does"
        self._cuda.empty_cache()
        self._cuda.reset_peak_memory_stats()
        result = work()
        return result, f"{self._cuda.max_memory_allocated() / 1e9:.2f} GB"


def round_s(trainer: Any, jobs: list[Any], gauge: Gauge) -> float:
    """Return the seconds that a round of these jobs takes, after one that warms up."""
    trainer.train(jobs)
    gauge.wait()
    began_s = time.perf_counter()
    trainer.train(jobs)
    gauge.wait()
    return time.perf_counter() - began_s


def conditions_and_plans(compute: str, folder: Path) -> tuple[str, list[str]]:
    """Return the conditions hash of a small run, and its events but for what training found."""
    config = {**RUN, "training": {"compute": compute, "dtype": "fp32"}}
    api.run(config, output=folder / compute, workers=1, cache=None)
    (manifest,) = (folder / compute).rglob("manifest.json")
    lines = manifest.with_name("events.jsonl").read_text("utf-8").splitlines()
    of_plans = [line for line in lines if json.loads(line).get("event") != "evaluated"]
    return json.loads(manifest.read_text("utf-8"))["conditions_hash"], of_plans


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a line for each, or say what would be measured."""
    given = parser().parse_args(arguments)
    measures = [measure.format(clients=given.clients) for measure in MEASURES]
    import torch

    if given.compute == "cuda" and not torch.cuda.is_available():
        print("torch finds no GPU here, so nothing is measured. With one this measures:")
        print(*(f"* {measure}" for measure in measures), sep="\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measured(given, Path(folder))
    print(f"{given.model} on {given.compute}, {given.clients} clients x {given.steps} steps")
    print(*(f"* {what}: {value}" for what, value in zip(measures, found, strict=True)), sep="\n")


def measured(given: argparse.Namespace, folder: Path) -> list[str]:
    """Return what was found for each of ``MEASURES``, in words."""
    gauge = Gauge(given.compute)
    directory = write_model(given.model, given.folder or folder)
    timed = lambda: loop(directory, 1 + given.steps, device=given.compute, wait=gauge.wait)  # noqa: E731
    taken, loop_peak = gauge.peak_gb(timed)
    loop_step_s = median(taken[1:])
    trainer = make_trainer(directory, given.steps, "bf16", given.compute)
    stacked = [
        job_of(directory, given.steps, device_id=k, stack=given.clients)
        for k in range(given.clients)
    ]
    alone_s, alone_peak = gauge.peak_gb(
        lambda: round_s(trainer, [job_of(directory, given.steps)], gauge)
    )
    together_s, together_peak = gauge.peak_gb(lambda: round_s(trainer, stacked, gauge))
    hashes, plans = zip(
        *(conditions_and_plans(c, folder) for c in ("cpu", given.compute)), strict=True
    )
    same = {True: "yes", False: "NO"}
    return [
        f"{given.clients * given.steps * loop_step_s / together_s:.2f}",
        f"{given.steps * loop_step_s / alone_s:.2f}",
        f"loop {loop_peak}, one client {alone_peak}, in one pass {together_peak}",
        f"conditions {same[hashes[0] == hashes[1]]}, plans {same[plans[0] == plans[1]]}",
    ]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--compute", choices=("cuda", "cpu"), default="cuda")
    made.add_argument("--model", choices=MODELS, default="386m")
    made.add_argument("--clients", type=int, default=16)
    made.add_argument("--steps", type=int, default=5)
    made.add_argument("--folder", type=Path, help="where the model is written, or lies already")
    return made


if __name__ == "__main__":
    main()
