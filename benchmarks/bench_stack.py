"""How much faster clients train several in one pass than one by one.

OMP_NUM_THREADS=1 python benchmarks/bench_stack.py [MODEL] [DTYPE] [COMPUTE] [RUNS]

The same jobs of 5 steps of 16 texts, in turns: one by one, and 4 and 16 in a pass. LoRA r=8 on
query and value at full depth, on WordNet's glosses cut at 32 tokens. Seconds of the processor, or
with a GPU of the clock, as medians and ranges; and how far the results are apart.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch

from devices.data import load_dataset
from devices.plan import Adapter, Broadcast, TermGrid, TrainingPlan
from devices.trainer import TrainingJob, TrainingResult
from devices.training.trainer import TorchTrainer, TrainingConfig

NUM_CLIENTS, RANK, STEPS, BATCH = 16, 8, 5, 16
SIZES = (1, 4, 16)


def main(model: str = "tiny", dtype: Any = "auto", compute: Any = "auto", runs: str = "5") -> None:
    """Print a line for each number of clients in a pass."""
    config = TrainingConfig(
        model, ("query", "value"), learning_rate=2e-3, dtype=dtype, compute=compute
    )
    trainer = TorchTrainer(config, load_dataset("wordnet-16"))
    jobs = _jobs(trainer)
    seconds: dict[int, list[float]] = {size: [] for size in SIZES}
    results: dict[int, list[TrainingResult]] = {}
    for _ in range(int(runs) + 1):
        for size in SIZES:
            began_s = _now_s(trainer)
            results[size] = trainer.train([replace(job, stack=size) for job in jobs])
            seconds[size].append(_now_s(trainer) - began_s)
    what = f"{model}, {trainer.host.dtype_name} on {trainer.host.device.type}"
    print(f"{what}: {NUM_CLIENTS} clients x {STEPS} steps of {BATCH} texts")
    for size in SIZES:
        times = seconds[size][1:]  # the first warms up
        ratios = [one / other for one, other in zip(seconds[1][1:], times, strict=True)]
        apart = max(
            _largest_difference(one.adapter, other.adapter)
            for one, other in zip(results[1], results[size], strict=True)
        )
        print(
            f"  {size} in a pass: {median(times):.3f} s ({min(times):.3f} to {max(times):.3f}), "
            f"{median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f}), "
            f"apart by {apart:.1e}"
        )


def _jobs(trainer: TorchTrainer) -> list[TrainingJob]:
    """Each client on shards of its own, from one broadcast."""
    blocks = trainer.spec.num_blocks
    adapter = trainer.spec.initial_adapter(RANK, 2.0 * RANK, np.random.default_rng(0))
    plan = TrainingPlan(
        device_id=0,
        terms=TermGrid.top_blocks(trainer.spec.grid_shape(RANK), blocks),
        weight_formats=("fp32",) * blocks,
        activation_bits=(32,) * blocks,
        local_steps=STEPS,
        batch_size=BATCH,
    )
    shards = np.arange(NUM_CLIENTS * 640).reshape(NUM_CLIENTS, 640)
    return [
        TrainingJob(plan.on(k), Broadcast(0, adapter), shards[k], seed=k)
        for k in range(NUM_CLIENTS)
    ]


def _now_s(trainer: TorchTrainer) -> float:
    if trainer.host.device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def _largest_difference(one: Adapter, other: Adapter) -> float:
    pairs = [
        pair
        for key, factors in one.factors.items()
        for pair in zip(factors, other.factors[key], strict=True)
    ]
    return max(float(np.abs(a - b).max()) for a, b in pairs)


if __name__ == "__main__":
    main(*sys.argv[1:])
