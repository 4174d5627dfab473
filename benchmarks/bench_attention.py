"""Times steps with eager attention and with torch's fused one, by dtype and length.

OMP_NUM_THREADS=1 python benchmarks/bench_attention.py [MODEL] [RUNS]

Milliseconds of the processor for a step on 16 texts that are all of one length, in turns, medians
and ranges. LoRA r=8 on query and value at full depth.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
from full_depth import full_depth_job, make_trainer

from devices.datasets.dataset import load_dataset
from devices.tasks.classification import Classification
from devices.training.trainer import TrainingConfig

LENGTHS = (32, 64, 128, 256)
DTYPES: Any = ("bf16", "fp32")
ATTENTIONS: Any = ("eager", "sdpa")
STEPS, BATCH = 2, 16


def main(model: str = "minilm-l6", runs: str = "5") -> None:
    """Print a line for each length."""
    ways = [(dtype, attention) for dtype in DTYPES for attention in ATTENTIONS]
    print(f"{model}, ms a step: " + ", ".join(" ".join(way) for way in ways))
    for length in LENGTHS:
        works = [_Work(model, length, *way) for way in ways]
        taken = [[work.step_ms() for work in works] for _ in range(int(runs))]
        print(f"  {length} tokens: " + ", ".join(map(_told, zip(*taken, strict=True))))


class _Work:
    """This work is a trainer that computes in one way, with texts that it cuts to one length."""

    def __init__(self, model: str, length: int, dtype: Any, attention: Any) -> None:
        data = Classification.of(load_dataset("wordnet-16", Classification.columns))
        long = tuple(" ".join(["word"] * length) for _ in range(STEPS * BATCH))
        short = data.data.train.at(np.arange(len(long)))
        texts = replace(short, columns={**short.columns, "text": long})
        data = Classification.of(replace(data.data, train=texts))
        config = TrainingConfig(
            model=model,
            targets=("query", "value"),
            learning_rate=2e-3,
            max_length=length,
            dtype=dtype,
            attention=attention,
        )
        self._trainer = make_trainer(config, data)
        self._job = full_depth_job(
            self._trainer.spec, np.arange(len(long)), steps=STEPS, batch_size=BATCH
        )
        self._trainer.train([self._job])  # a first training, which is not timed

    def step_ms(self) -> float:
        began_s = time.process_time()
        self._trainer.train([self._job])
        return (time.process_time() - began_s) / STEPS * 1e3


def _told(numbers: tuple[float, ...]) -> str:
    return f"{median(numbers):,.0f} ({min(numbers):,.0f} to {max(numbers):,.0f})"


if __name__ == "__main__":
    main(*sys.argv[1:])
