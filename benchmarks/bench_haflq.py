"""Seconds that HAFLQ's server takes to decide the upload bits of a large fleet.

python benchmarks/bench_haflq.py [devices] [blocks] [terms a block]
"""

from __future__ import annotations

import sys
import time

import numpy as np

from algorithms.bit_allocation import UploadSteps, adaptive_bits
from algorithms.importance import choose_terms

MODULES = {"query": 1536, "output.dense": 3840}  # parameters of one of their terms
LEVELS = (2, 4, 8, 16)


def main(num_devices: int = 1000, num_blocks: int = 24, num_terms: int = 64) -> None:
    """Half of the terms chosen for each device, and bits for all of them within any budget."""
    rng = np.random.default_rng(0)
    shape = (num_blocks, len(MODULES), num_terms // len(MODULES))
    score = rng.lognormal(0.0, 2.0, shape)
    sizes = np.broadcast_to(np.array(list(MODULES.values()))[:, None], shape)
    budgets = (rng.random(num_devices) * LEVELS[-1] * sizes.sum()).astype(int).tolist()

    begun = time.perf_counter()
    for _ in budgets:
        choose_terms(score, shape[2] // 2, explore_share=0.1, rng=rng)
    chosen_at = time.perf_counter()
    steps = UploadSteps.by_worth(score, sizes, levels=LEVELS)
    for budget in budgets:
        adaptive_bits(steps, np.ones(shape, dtype=bool), budget_bits=budget)
    given_at = time.perf_counter()
    print(
        f"{num_devices} devices, {num_blocks} blocks of {num_terms} terms: "
        f"{chosen_at - begun:.2f} s to choose terms, {given_at - chosen_at:.2f} s to give bits"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
