"""Measures the host's memory while it trains a large model, beside a plain loop.

python benchmarks/bench_memory.py [--model 386m|1.1b] [--format fp32|fp16|int8|int4|nf4]
    [--dtype auto|bf16|fp32] [--steps 2] [--workers 2] [--loop] [--folder DIR]

Random weights in bf16, in the shape of a Qwen2 of 386 M parameters or of a Llama of 1.1 B, written
to a folder that a later call finds again. A round is so many steps on 4 texts of 64 tokens, LoRA
r=8 on queries and values of every block, and an evaluation of 8 texts; the loop, in bf16, takes the
steps alone. Each is a process of its own. Its peak is what the system says (resident, mapped files
included); with workers also the sum of proportional set sizes, in which a page that several map
counts once.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
from large_model import MODELS, job_of, loop, make_trainer, write_model

SAMPLE_S = 0.5


def peak_bytes() -> int:
    """Return the most resident memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def alone(directory: Path, given: argparse.Namespace) -> int:
    """Train a round in this process; return its peak before the evaluation, as the loop has it."""
    trainer = make_trainer(directory, given.steps, given.dtype)
    (result,) = trainer.train([job_of(directory, given.steps, given.format)])
    trained = peak_bytes()
    trainer.evaluate(result.adapter)
    return trained


def shared(directory: Path, given: argparse.Namespace) -> None:
    """Train a round in workers, one job in each."""
    from simulator.workers.pool import Pool
    from simulator.workers.processes import LocalProcesses
    from simulator.workers.shared_trainer import SharedTrainer

    make = partial(make_trainer, directory, given.steps, given.dtype)
    trainer = SharedTrainer(Pool(LocalProcesses(make), given.workers), lambda scores: list(scores))
    try:
        jobs = [
            job_of(directory, given.steps, given.format, device_id=k) for k in range(given.workers)
        ]
        results = trainer.train(jobs)
        trainer.evaluate(results[0].adapter)
    finally:
        trainer.close()


def tree_peak(process: subprocess.Popen[str], over: threading.Event) -> int:
    """Return the most that a process and all below it have held, each shared page counted once."""
    peak = 0
    with suppress(psutil.Error):
        root = psutil.Process(process.pid)
        while not over.wait(SAMPLE_S):
            now = 0
            for one in [root, *root.children(recursive=True)]:
                with suppress(psutil.Error):
                    now += one.memory_full_info().pss
            peak = max(peak, now)
    return peak


def measured(way: str, arguments: list[str]) -> dict[str, int]:
    """Run one way in a process of its own, and return its peaks in bytes."""
    command = [sys.executable, "-W", "ignore", __file__, *arguments, "--one", way]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    over = threading.Event()
    with ThreadPoolExecutor(1) as beside:
        peak = beside.submit(tree_peak, process, over) if way == "shared" else None
        said, _ = process.communicate()
        over.set()
    if process.returncode:
        raise SystemExit(f"{way} did not run (exit code {process.returncode})")
    peaks: dict[str, int] = json.loads(said.splitlines()[-1])
    return {**peaks, "proportional": peak.result() if peak else peaks["resident"]}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--model", choices=MODELS, default="386m")
    formats = ("fp32", "fp16", "int8", "int4", "nf4")
    made.add_argument("--format", choices=formats, default="fp32", help="of the base, in a plan")
    made.add_argument("--dtype", choices=("auto", "bf16", "fp32"), default="auto")
    made.add_argument("--steps", type=int, default=2)
    made.add_argument("--workers", type=int, default=0, help="0: train in one process alone")
    made.add_argument("--loop", action="store_true", help="also the loop by hand")
    made.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "bench-memory"))
    made.add_argument("--one", choices=("write", "loop", "alone", "shared"), help=argparse.SUPPRESS)
    return made


def one(given: argparse.Namespace) -> None:
    """Do one thing in this process, and print its peaks: of training, and of all."""
    directory = write_model(given.model, given.folder)
    trained = None
    if given.one == "loop":
        loop(directory, given.steps)
    elif given.one == "alone":
        trained = alone(directory, given)
    elif given.one == "shared":
        shared(directory, given)
    print(json.dumps({"trained": trained or peak_bytes(), "resident": peak_bytes()}))


def main(arguments: list[str]) -> None:
    """Measure each way, and print a line for it."""
    given = parser().parse_args(arguments)
    if given.one:
        one(given)
        return
    measured("write", arguments)  # in a separate process, since writing holds the model in memory
    size = sum(file.stat().st_size for file in (given.folder / given.model).glob("*.safetensors"))
    print(f"{given.model}: {size / 1e9:.2f} GB of weights, {given.steps} steps, {given.format}")
    ways = [*(["loop"] if given.loop else []), "shared" if given.workers else "alone"]
    for way in ways:
        peaks = measured(way, arguments)
        of_tree = f", {peaks['proportional'] / 1e9:.2f} GB with all workers" * (way == "shared")
        print(
            f"  {way}: {peaks['trained'] / 1e9:.2f} GB resident to train, "
            f"{peaks['resident'] / 1e9:.2f} with evaluation{of_tree}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
