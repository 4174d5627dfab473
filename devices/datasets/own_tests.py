"""Splits what each device holds into what it trains on and what its model is tested on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from traces.arrays import IntArray


def split_own(
    shards: Sequence[IntArray], share: float, rng: Callable[[int], np.random.Generator]
) -> tuple[list[IntArray], list[IntArray]]:
    """Return the training examples and the own test examples of each device, both rising.

    A device keeps ``share`` of its examples for tests, to the nearest whole number, and at least
    one for training. ``rng`` gives the stream of a device, so that no device moves another's draw.
    """
    training, tests = [], []
    for device, shard in enumerate(shards):
        count = max(0, min(round(share * len(shard)), len(shard) - 1))
        drawn = rng(device).permutation(shard)
        tests.append(np.sort(drawn[:count]))
        training.append(np.sort(drawn[count:]))
    return training, tests
