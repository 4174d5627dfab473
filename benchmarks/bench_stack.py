"""Measures how much faster clients train several in one pass than one by one.

OMP_NUM_THREADS=1 python benchmarks/bench_stack.py [MODEL] [DTYPE] [COMPUTE] [RUNS]

The same 5 steps of 16 texts for 16 clients, in turns: one by one, and 4 and 16 in a pass. LoRA r=8
on query and value at full depth, on WordNet's glosses cut at 32 tokens. Seconds of the processor,
or with a GPU of the clock, as medians and ranges; what share of the rate of products of 1024 x 1024
matrices, measured in between, the FLOPs of one by one come to; and how far the results are apart.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch
from full_depth import full_depth_job, make_trainer
from torch.utils.flop_counter import FlopCounterMode

from devices.datasets.dataset import load_dataset
from devices.tasks.classification import Classification
from devices.training.config import TrainingConfig
from devices.training.trainer import TorchTrainer
from devices.vocabulary.trainer import TrainingJob, TrainingResult

NUM_CLIENTS, STEPS, BATCH = 16, 5, 16
SIZES = (1, 4, 16)
SIDE, NUM_PRODUCTS = 1024, 50


def main(model: str = "tiny", dtype: Any = "auto", compute: Any = "auto", runs: str = "5") -> None:
    """Print a line for each number of clients in a pass."""
    config = TrainingConfig(
        model=model,
        targets=("query", "value"),
        learning_rate=2e-3,
        dtype=dtype,
        compute=compute,
    )
    trainer = make_trainer(
        config, Classification.of(load_dataset("wordnet-16", Classification.columns))
    )
    jobs = _jobs(trainer)
    with FlopCounterMode(display=False) as counter:
        alone = _train(trainer, jobs, 1)
    # These trainings also warm up the caches for the timed ones.
    apart = {size: _apart(alone, _train(trainer, jobs, size)) for size in SIZES}
    seconds: dict[int, list[float]] = {size: [] for size in SIZES}
    shares: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(int(runs)):
        for size in SIZES:
            flops_per_s = 2 * SIDE**3 * NUM_PRODUCTS / _seconds(trainer, _products(trainer))
            spent_s = _seconds(trainer, lambda size=size: _train(trainer, jobs, size))
            seconds[size].append(spent_s)
            shares[size].append(counter.get_total_flops() / spent_s / flops_per_s)
    what = f"{model}, {trainer.host_names.dtype} on {trainer.host_names.compute}"
    print(f"{what}: {NUM_CLIENTS} clients x {STEPS} steps of {BATCH} texts")
    for size in SIZES:
        ratios = [one / other for one, other in zip(seconds[1], seconds[size], strict=True)]
        print(
            f"  {size} in a pass: {_told(seconds[size])} s, {_told(ratios)} times as fast, "
            f"{_told(shares[size])} of the rate, apart by {apart[size]:.1e}"
        )


def _told(numbers: list[float]) -> str:
    return f"{median(numbers):.3g} ({min(numbers):.3g} to {max(numbers):.3g})"


def _train(trainer: TorchTrainer, jobs: list[TrainingJob], size: int) -> list[TrainingResult]:
    """Train all jobs with the same batches, ``size`` of them in a pass, and return the results."""
    passes = [jobs[first : first + size] for first in range(0, len(jobs), size)]
    return [result for some in passes for result in trainer.train(some)]


def _products(trainer: TorchTrainer) -> Callable[[], Any]:
    device, dtype = trainer.host.device, trainer.host.dtype
    a, b = (torch.randn(SIDE, SIDE, device=device, dtype=dtype) for _ in range(2))
    a @ b
    return lambda: [a @ b for _ in range(NUM_PRODUCTS)]


def _seconds(trainer: TorchTrainer, work: Callable[[], Any]) -> float:
    began_s = _now_s(trainer)
    work()
    return _now_s(trainer) - began_s


def _jobs(trainer: TorchTrainer) -> list[TrainingJob]:
    """Return a job for each client, on a shard of its own and from one broadcast."""
    shards = np.arange(NUM_CLIENTS * 640).reshape(NUM_CLIENTS, 640)
    job = full_depth_job(trainer.spec, shards[0], steps=STEPS, batch_size=BATCH)
    return [
        replace(job, plan=job.plan.on(k), examples=shards[k], seed=k, stack=NUM_CLIENTS)
        for k in range(NUM_CLIENTS)
    ]


def _now_s(trainer: TorchTrainer) -> float:
    if trainer.host.device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def _apart(ones: list[TrainingResult], others: list[TrainingResult]) -> float:
    """Return the largest difference between any two numbers of factors in the same place."""
    pairs = [
        pair
        for one, other in zip(ones, others, strict=True)
        for key, factors in one.adapter.factors.items()
        for pair in zip(factors, other.adapter.factors[key], strict=True)
    ]
    return max(float(np.abs(a - b).max()) for a, b in pairs)


if __name__ == "__main__":
    main(*sys.argv[1:])
