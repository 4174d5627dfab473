"""Divides the training examples among devices.

A shard is the array of one device's examples: rising indices into the training set, int64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from traces.arrays import IntArray

MAX_ALPHA = 1e6
"""Far beyond the last alpha that differs from even shares; Dirichlet draws overflow near 1e306."""


def dirichlet_shards(
    groups: IntArray,
    num_devices: int,
    *,
    alpha: float,
    rng: np.random.Generator,
    min_examples: int = 1,
) -> list[IntArray]:
    """Divide examples so that devices differ in their mix of groups, such as classes.

    ``groups`` is (n,); returns one array of rising indices into it for each device. Every example
    goes to exactly one device.

    Each group is divided by its own draw of Dirichlet(alpha, ..., alpha) over the devices
    (Yurochkin et al. 2019, "Bayesian nonparametric federated learning of neural networks"), so both
    the mix of groups and the size of a shard vary: alpha near 0 gives a group to one device, a
    large alpha gives every device an even share. Then every device short of ``min_examples`` takes
    random examples, one at a time, from whichever shard is the largest (the first of equals).

    Raises ValueError for alpha outside (0, 1e6], or too few examples for the devices.
    """
    if not 0 < alpha <= MAX_ALPHA:
        raise ValueError(f"alpha must be in (0, {MAX_ALPHA:g}], got {alpha:g}")
    _check_enough(len(groups), num_devices, min_examples)
    parts: list[list[IntArray]] = [[] for _ in range(num_devices)]
    for group in np.unique(groups):
        examples = rng.permutation(np.flatnonzero(groups == group))
        shares = rng.dirichlet(np.full(num_devices, alpha))
        cuts = np.rint(np.cumsum(shares[:-1]) * len(examples)).astype(np.int64)
        for part, chunk in zip(parts, np.split(examples, cuts), strict=True):
            part.append(chunk)
    return _repaired([np.concatenate(part) for part in parts], rng, min_examples)


def iid_shards(num_examples: int, num_devices: int, *, rng: np.random.Generator) -> list[IntArray]:
    """Divide examples at random into shards whose sizes differ by at most one.

    Returns one array of rising indices for each device; every example goes to exactly one.

    Raises ValueError for fewer examples than devices.
    """
    _check_enough(num_examples, num_devices, 1)
    shards = np.array_split(rng.permutation(num_examples), num_devices)
    return [np.sort(shard) for shard in shards]


def natural_shards(
    clients: Sequence[str], num_devices: int, *, rng: np.random.Generator, min_examples: int = 1
) -> list[IntArray]:
    """Give each device the examples of one client, drawn from those that have ``min_examples``.

    ``clients`` names the client of each example, (n,). Returns one array of rising indices for each
    device; examples of clients that were not drawn belong to nobody. Raises ValueError for fewer
    such clients than devices.
    """
    _check_positive(num_devices, min_examples)
    names, inverse, counts = np.unique(
        np.array(clients, dtype=object), return_inverse=True, return_counts=True
    )
    large = np.flatnonzero(counts >= min_examples)
    if len(large) < num_devices:
        raise ValueError(
            f"there must be a client with at least {min_examples} training examples for each of "
            f"{num_devices} devices, got {len(large)} of {len(names)} clients; lower "
            "shards.min_examples or the number of devices"
        )
    chosen = rng.permutation(large)[:num_devices]
    order = np.argsort(inverse, kind="stable")
    ends = np.cumsum(counts)
    return [order[ends[client] - counts[client] : ends[client]] for client in chosen.tolist()]


def _check_enough(num_examples: int, num_devices: int, min_examples: int) -> None:
    _check_positive(num_devices, min_examples)
    if num_devices * min_examples > num_examples:
        raise ValueError(
            f"there must be at least {num_devices * min_examples} training examples "
            f"({num_devices} devices, {min_examples} each), got {num_examples}"
        )


def _check_positive(num_devices: int, min_examples: int) -> None:
    if num_devices < 1:
        raise ValueError(f"the number of devices must be at least 1, got {num_devices}")
    if min_examples < 1:
        raise ValueError(f"min_examples must be at least 1, got {min_examples}")


def _repaired(
    shards: Sequence[IntArray], rng: np.random.Generator, min_examples: int
) -> list[IntArray]:
    held = [shard.tolist() for shard in shards]
    sizes = np.array([len(shard) for shard in held])
    for device in np.flatnonzero(sizes < min_examples):
        while sizes[device] < min_examples:
            largest = int(np.argmax(sizes))
            held[device].append(held[largest].pop(int(rng.integers(sizes[largest]))))
            sizes[device] += 1
            sizes[largest] -= 1
    return [np.array(sorted(shard), dtype=np.int64) for shard in held]


@dataclass(frozen=True, eq=False)
class DividedShards:
    """The shards of a training set that was divided among all devices at once."""

    shards: Sequence[IntArray]

    def __getitem__(self, device_id: int) -> IntArray:
        return self.shards[device_id]

    def sizes(self) -> IntArray:
        """Return the number of examples of each device, (n,)."""
        return np.array([len(shard) for shard in self.shards], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class DrawnShards:
    """Shards for more devices than there are examples, each drawn when it is asked for.

    A device draws with replacement, and two devices may hold the same example.

    The groups of a device follow its own draw of Dirichlet(alpha, ..., alpha) over all groups;
    ``rng`` gives the stream of a device.
    """

    groups: IntArray  # (n,): of the training set
    num_devices: int
    num_examples: int  # of each device
    alpha: float
    rng: Callable[[int], np.random.Generator]

    def __getitem__(self, device_id: int) -> IntArray:
        rng = self.rng(device_id)
        order, starts, counts = self._by_group
        shares = rng.dirichlet(np.full(len(counts), self.alpha))
        groups = rng.choice(len(counts), size=self.num_examples, p=shares)
        within = np.floor(rng.random(self.num_examples) * counts[groups]).astype(np.int64)
        return np.sort(order[starts[groups] + within])

    @cached_property
    def _by_group(self) -> tuple[IntArray, IntArray, IntArray]:
        """The examples in order of their group, where each group begins there, and its size."""
        _, inverse, counts = np.unique(self.groups, return_inverse=True, return_counts=True)
        order = np.argsort(inverse, kind="stable")
        return order, np.cumsum(counts) - counts, counts

    def sizes(self) -> IntArray:
        """Return the number of examples of each device, (n,)."""
        return np.full(self.num_devices, self.num_examples, dtype=np.int64)


def expected_scores(
    shards: Iterable[IntArray], groups: IntArray, by_group: Sequence[float]
) -> list[float]:
    """Work out the score that each shard may expect, from a model's score on each group.

    The mean of ``by_group`` weighted by the groups of the shard; those of unknown score (NaN) are
    left out of it. NaN where none is known.
    """
    scores = np.asarray(by_group)
    known = ~np.isnan(scores)
    expected = []
    for examples in shards:
        counts = np.bincount(groups[examples], minlength=len(scores))[known]
        total = int(counts.sum())
        expected.append(float(counts @ scores[known]) / total if total else math.nan)
    return expected
