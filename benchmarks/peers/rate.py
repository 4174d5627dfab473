"""Measures the FLOP/s of matrix products: ``python -m peers.rate DTYPE PROCESSES``."""

from __future__ import annotations

import multiprocessing
import sys
import time
from multiprocessing.synchronize import Barrier

import torch

SIDE = 1024
WINDOW_S = 2.0


def rate(dtype: str, barrier: Barrier) -> float:
    """Return the FLOP/s of one process with one thread, while the others compute too."""
    torch.set_num_threads(1)
    a, b = (torch.randn(SIDE, SIDE, dtype=getattr(torch, dtype)) for _ in range(2))
    for _ in range(3):
        a @ b
    barrier.wait()
    began_s, products = time.perf_counter(), 0
    while time.perf_counter() < began_s + WINDOW_S:
        a @ b
        products += 1
    return 2 * SIDE**3 * products / (time.perf_counter() - began_s)


if __name__ == "__main__":
    processes = int(sys.argv[2])
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(processes) as pool:
        barrier = manager.Barrier(processes)
        print(sum(pool.starmap(rate, [(sys.argv[1], barrier)] * processes, chunksize=1)))
