"""Divides the training examples among devices.

A shard is the array of one device's examples: rising indices into the training set, int64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
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


def few_group_shards(
    groups: IntArray, num_devices: int, *, per_device: int, rng: np.random.Generator
) -> list[IntArray]:
    """Give each device the examples of ``per_device`` groups, such as two classes.

    Groups are dealt in turn, in an order that is drawn, so that each is held by equally many
    devices, give or take one; a group is divided evenly among those that hold it (McMahan et al.
    2017, "Communication-efficient learning of deep networks from decentralized data", deal two
    classes a device). Groups that nobody was dealt belong to nobody. ``groups`` is (n,); returns
    one array of rising indices for each device.

    Raises ValueError where there are fewer groups than ``per_device``, or a group has fewer
    examples than there are devices to hold it.
    """
    _check_positive(num_devices, 1)
    names = rng.permutation(np.unique(groups))
    if not 1 <= per_device <= len(names):
        raise ValueError(
            f"per_device must be in [1, {len(names)}], the number of groups, got {per_device}"
        )
    dealt = np.arange(num_devices * per_device).reshape(num_devices, per_device) % len(names)
    dealt = rng.permutation(dealt)
    held: list[list[IntArray]] = [[] for _ in range(num_devices)]
    for place, group in enumerate(names):
        examples = rng.permutation(np.flatnonzero(groups == group))
        holders = np.flatnonzero((dealt == place).any(axis=1))
        if len(holders) > len(examples):
            raise ValueError(
                f"every group must have an example for each of the {len(holders)} devices that "
                f"hold it, got {len(examples)}; lower per_device or the number of devices"
            )
        if not len(holders):
            continue
        for device, part in zip(holders, np.array_split(examples, len(holders)), strict=True):
            held[device].append(part)
    return [np.sort(np.concatenate(parts)) for parts in held]


def log_normal_sizes(
    num_examples: int,
    num_devices: int,
    *,
    sigma: float,
    min_examples: int,
    rng: np.random.Generator,
) -> IntArray:
    """Return sizes of shards that sum to ``num_examples`` and differ by a log-normal law, (n,).

    Beyond ``min_examples`` each, the examples are shared by weights exp(sigma z) with z standard
    normal, rounded down; those left over go to the largest remainders. Raises ValueError for too
    few examples.
    """
    _check_enough(num_examples, num_devices, min_examples)
    weights = np.exp(sigma * rng.standard_normal(num_devices))
    spread = (num_examples - num_devices * min_examples) * weights / weights.sum()
    sizes: IntArray = np.floor(spread).astype(np.int64)
    left = num_examples - num_devices * min_examples - int(sizes.sum())
    sizes[np.argsort(sizes - spread, kind="stable")[:left]] += 1
    sizes += min_examples
    return sizes


def sized_shards(
    num_examples: int, sizes: Sequence[int], *, rng: np.random.Generator
) -> list[IntArray]:
    """Draw shards of these sizes, without replacement; what is left belongs to nobody.

    Returns one array of rising indices for each device. Raises ValueError where the sizes sum to
    more than there are examples.
    """
    if sum(sizes) > num_examples:
        raise ValueError(
            f"sizes must sum to at most the {num_examples} training examples, got {sum(sizes)}"
        )
    parts = np.split(rng.permutation(num_examples), np.cumsum(sizes))
    return [np.sort(part) for part in parts[:-1]]


def partition_statistics(shards: Sequence[IntArray], groups: IntArray | None) -> dict[str, float]:
    """Return what a table says of a partition: sizes of shards, and how their groups are skewed.

    The distance of a device is the total variation, in [0, 1], between its mix of groups and that
    of all examples: 0 where they are alike.
    """
    sizes = np.array([len(shard) for shard in shards])
    names = ("fewest", "lower quarter", "median", "upper quarter", "most")
    quarters = np.quantile(sizes, (0, 0.25, 0.5, 0.75, 1)).tolist()
    found: dict[str, float] = {"devices": len(sizes), "examples held": int(sizes.sum())}
    found |= {f"examples, {name}": each for name, each in zip(names, quarters, strict=True)}
    if groups is None:
        return found
    _, inverse = np.unique(groups, return_inverse=True)
    overall = np.bincount(inverse) / len(inverse)
    mixes = [np.bincount(inverse[s], minlength=len(overall)) / len(s) for s in shards if len(s)]
    distances = [each for each in group_distances(shards, groups) if not math.isnan(each)]
    return found | {
        "groups in all": len(overall),
        "groups a device, mean": float(np.mean([np.count_nonzero(mix) for mix in mixes])),
        "share of a device's largest group, mean": float(np.mean([mix.max() for mix in mixes])),
        "distance from the whole, mean": float(np.mean(distances)),
        "distance from the whole, largest": max(distances),
    }


def group_distances(shards: Sequence[IntArray], groups: IntArray) -> list[float]:
    """Return the total variation, in [0, 1], between each shard's mix of groups and that of all.

    NaN for a shard without an example.
    """
    _, inverse = np.unique(groups, return_inverse=True)
    overall = np.bincount(inverse) / len(inverse)
    return [
        float(np.abs(np.bincount(inverse[s], minlength=len(overall)) / len(s) - overall).sum()) / 2
        if len(s)
        else math.nan
        for s in shards
    ]


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
    """Divided shards are those of a training set that was divided among all devices at once."""

    shards: Sequence[IntArray]

    def __getitem__(self, device_id: int) -> IntArray:
        return self.shards[device_id]

    def each(self, device_ids: Sequence[int]) -> Iterator[IntArray]:
        """Return the examples of these devices, one device after the other."""
        return map(self.shards.__getitem__, device_ids)

    def sizes(self) -> IntArray:
        """Return the number of examples of each device, (n,)."""
        return np.array([len(shard) for shard in self.shards], dtype=np.int64)


DRAWN_TOGETHER = 256
"""The shards that are drawn in one array."""


@dataclass(frozen=True, eq=False)
class DrawnShards:
    """Drawn shards serve more devices than there are examples; each is drawn when asked for.

    A device draws with replacement, and two devices may hold the same example.

    The groups of a device follow its own draw of Dirichlet(alpha, ..., alpha) over all groups;
    ``rngs`` gives the streams of several devices, in their order.
    """

    groups: IntArray  # (n,): the group of each training example
    num_devices: int
    num_examples: int  # the number of examples of each device
    alpha: float
    rngs: Callable[[Sequence[int]], Iterable[np.random.Generator]]

    def __getitem__(self, device_id: int) -> IntArray:
        (examples,) = self.each([device_id])
        return examples

    def each(self, device_ids: Sequence[int]) -> Iterator[IntArray]:
        """Return the examples of these devices, one device after the other."""
        for start in range(0, len(device_ids), DRAWN_TOGETHER):
            yield from self._drawn(device_ids[start : start + DRAWN_TOGETHER])

    def _drawn(self, device_ids: Sequence[int]) -> IntArray:
        """Return (k, num_examples): the examples of k devices."""
        order, starts, counts = self._by_group
        alphas, size = np.full(len(counts), self.alpha), (2, self.num_examples)
        draws = [(rng.dirichlet(alphas), rng.random(size)) for rng in self.rngs(device_ids)]
        # This draws as ``rng.choice(len(counts), size, p=shares)`` does, without its checks.
        reached = np.cumsum([shares for shares, _ in draws], axis=1)
        reached /= reached[:, -1:]
        drawn, places = np.stack([places for _, places in draws], axis=1)  # (k, num_examples) each
        groups = np.stack(
            [row.searchsorted(one, side="right") for row, one in zip(reached, drawn, strict=True)]
        )
        within = np.floor(places * counts[groups]).astype(np.int64)
        return np.sort(order[starts[groups] + within], axis=1)

    @cached_property
    def _by_group(self) -> tuple[IntArray, IntArray, IntArray]:
        """Return the examples sorted by group (n,), and the start and size of each group (G,)."""
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
