"""What a device keeps for tests is its own, and none of it is trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from devices.datasets.own_tests import split_own
from traces.arrays import IntArray

SHARDS = [np.arange(10), np.array([10, 13, 17]), np.array([20, 21]), np.array([30])]


def rng_of(device: int) -> np.random.Generator:
    return np.random.default_rng((7, device))


@pytest.mark.parametrize(
    ("share", "sizes"),
    [(0.0, [0, 0, 0, 0]), (0.2, [2, 1, 0, 0]), (0.5, [5, 2, 1, 0]), (0.99, [9, 2, 1, 0])],
)
def test_each_device_keeps_its_share_and_trains_on_the_rest(
    share: float, sizes: Sequence[int]
) -> None:
    training, tests = split_own(SHARDS, share, rng_of)
    assert [len(own) for own in tests] == sizes
    for shard, trained, own in zip(SHARDS, training, tests, strict=True):
        assert sorted([*trained, *own]) == shard.tolist()
        assert (np.diff(trained) > 0).all()
        assert (np.diff(own) > 0).all()


def test_what_a_device_keeps_does_not_depend_on_the_others() -> None:
    def tests_of(shards: Sequence[IntArray]) -> list[list[int]]:
        return [own.tolist() for own in split_own(shards, 0.4, rng_of)[1]]

    assert tests_of([np.arange(50, 90), *SHARDS[1:]])[1:] == tests_of(SHARDS)[1:]
