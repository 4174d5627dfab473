"""Shards are a partition whatever the draw, and skewed as alpha says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.datasets.partition import (
    DrawnShards,
    dirichlet_shards,
    expected_scores,
    few_group_shards,
    iid_shards,
    log_normal_sizes,
    natural_shards,
    partition_statistics,
    sized_shards,
)
from traces.arrays import IntArray

NUM_CLASSES, PER_CLASS, NUM_DEVICES = 16, 800, 20
LABELS = np.repeat(np.arange(NUM_CLASSES), PER_CLASS)


def class_shares(shards: list[IntArray]) -> np.ndarray:
    """Return the part of each class that each device holds (classes, devices)."""
    counts = [np.bincount(LABELS[shard], minlength=NUM_CLASSES) for shard in shards]
    return np.stack(counts, axis=1) / PER_CLASS


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    num_devices=st.integers(1, 12),
    min_examples=st.integers(1, 5),
    alpha=st.floats(1e-300, 1e6),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_example_goes_to_one_device_and_every_device_gets_its_minimum(
    labels: list[int], num_devices: int, min_examples: int, alpha: float, seed: int
) -> None:
    if num_devices * min_examples > len(labels):
        num_devices, min_examples = 1, 1
    shards = dirichlet_shards(
        np.array(labels, dtype=np.int64),
        num_devices,
        alpha=alpha,
        rng=np.random.default_rng(seed),
        min_examples=min_examples,
    )
    assert len(shards) == num_devices
    assert min(len(shard) for shard in shards) >= min_examples
    assert sorted(np.concatenate(shards).tolist()) == list(range(len(labels)))
    for shard in shards:
        assert shard.dtype == np.int64
        assert (np.diff(shard) > 0).all()


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_iid_shards_are_a_partition_into_equal_sizes(
    num_examples: int, num_devices: int, seed: int
) -> None:
    num_devices = min(num_devices, num_examples)
    shards = iid_shards(num_examples, num_devices, rng=np.random.default_rng(seed))
    sizes = [len(shard) for shard in shards]
    assert len(shards) == num_devices
    assert max(sizes) - min(sizes) <= 1
    assert sorted(np.concatenate(shards).tolist()) == list(range(num_examples))


def test_iid_shards_mix_the_classes() -> None:
    shares = class_shares(iid_shards(len(LABELS), NUM_DEVICES, rng=np.random.default_rng(0)))
    # A device draws n = 640 of N = 12,800 without replacement; its count of a class is
    # hypergeometric with mean 40 and std sqrt(640 / 16 * 15 / 16 * 0.95) = 6.0. Five of them.
    assert np.abs(shares * PER_CLASS - PER_CLASS / NUM_DEVICES).max() < 30


def test_shards_depend_on_the_seed_alone() -> None:
    def drawn(seed: int) -> list[list[int]]:
        rng = np.random.default_rng(seed)
        return [shard.tolist() for shard in dirichlet_shards(LABELS, 5, alpha=0.5, rng=rng)]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


@pytest.mark.parametrize("alpha", [0.05, 0.5, 5.0])
def test_skew_is_that_of_the_dirichlet_distribution(alpha: float) -> None:
    # For p ~ Dirichlet(alpha, ..., alpha) over D devices, E[sum_d p_d^2] = (alpha + 1) / (D alpha
    # + 1): 1 where one device holds the class, 1 / D where all hold the same; it rises as alpha
    # falls, here 0.059, 0.136, 0.525. Rounding moves a share by at most 1 / 800, hence the sum by
    # 2 / 800 = 0.0025. The repair moves at most 20 examples, each of them the sum of one of 16
    # classes by at most 2 / 800, hence their mean by 0.003.
    concentration = np.concatenate(
        [
            (class_shares(shards) ** 2).sum(axis=1)
            for shards in (
                dirichlet_shards(LABELS, NUM_DEVICES, alpha=alpha, rng=np.random.default_rng(seed))
                for seed in range(30)
            )
        ]
    )
    expected = (alpha + 1) / (NUM_DEVICES * alpha + 1)
    standard_error = concentration.std() / np.sqrt(len(concentration))
    assert abs(concentration.mean() - expected) < 4 * standard_error + 0.0055


def test_a_large_alpha_gives_even_shares() -> None:
    shards = dirichlet_shards(LABELS, NUM_DEVICES, alpha=1e6, rng=np.random.default_rng(1))
    # A share has mean 1 / 20 and variance (1/20)(19/20) / (20e6 + 1), a std of 0.04 examples of
    # 800. Both its cuts are rounded, so a count is 40 give or take one.
    assert np.abs(class_shares(shards) * PER_CLASS - 40).max() <= 1


def test_a_tiny_alpha_leaves_whole_classes_together() -> None:
    shards = dirichlet_shards(LABELS, NUM_DEVICES, alpha=1e-9, rng=np.random.default_rng(1))
    # 16 classes over 20 devices leave devices empty; each takes one example, so at most 20 move.
    assert (class_shares(shards).max(axis=0) >= 1 / PER_CLASS).all()
    assert (class_shares(shards).max(axis=1) >= 1 - 20 / PER_CLASS).all()


def test_the_repair_takes_from_the_largest_shard_only() -> None:
    # alpha near 0 gives all 90 examples of the one class to one device; the others take 5 each.
    shards = dirichlet_shards(
        np.zeros(90, dtype=np.int64), 4, alpha=1e-9, rng=np.random.default_rng(0), min_examples=5
    )
    assert sorted(len(shard) for shard in shards) == [5, 5, 5, 75]


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf"), 2e6])
def test_alpha_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1e\+06\], got "):
        dirichlet_shards(LABELS, 2, alpha=alpha, rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("num_devices", "min_examples", "message"),
    [
        (11, 1, r"at least 11 training examples \(11 devices, 1 each\), got 10"),
        (3, 4, r"at least 12 training examples \(3 devices, 4 each\), got 10"),
        (0, 1, "the number of devices must be at least 1, got 0"),
        (2, 0, "min_examples must be at least 1, got 0"),
    ],
)
def test_shards_that_cannot_be_made_are_refused(
    num_devices: int, min_examples: int, message: str
) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=message):
        dirichlet_shards(LABELS[:10], num_devices, alpha=1.0, rng=rng, min_examples=min_examples)


def test_more_devices_than_examples_are_refused_for_iid_too() -> None:
    with pytest.raises(ValueError, match=r"at least 4 training examples .* got 3"):
        iid_shards(3, 4, rng=np.random.default_rng(0))


def test_expected_accuracy_is_that_of_the_classes_weighted_by_the_shard() -> None:
    labels = np.array([0, 0, 1, 1, 2])
    shards = [np.array(examples, dtype=int) for examples in ([0, 1, 2], [2, 3], [3, 4], [4], [])]
    found = expected_scores(shards, labels, [0.25, 1.0, np.nan])
    # The shards hold: two of class 0 and one of class 1; class 1; class 1 and an unknown class; an
    # unknown class; nothing.
    assert found == pytest.approx([0.5, 1.0, 1.0, np.nan, np.nan], nan_ok=True)


def test_natural_shards_are_the_examples_of_one_client_each() -> None:
    clients = [f"client{k % 5}" for k in range(23)]  # 0, 1 and 2 have five examples, others four
    shards = natural_shards(clients, 3, rng=np.random.default_rng(0), min_examples=5)
    held = {tuple(sorted({clients[k] for k in shard})) for shard in shards}
    assert held == {("client0",), ("client1",), ("client2",)}
    for shard in shards:
        assert len(shard) == 5
        assert (np.diff(shard) > 0).all()
    again = natural_shards(clients, 3, rng=np.random.default_rng(0), min_examples=5)
    assert all(np.array_equal(one, other) for one, other in zip(shards, again, strict=True))


@pytest.mark.parametrize(
    ("clients", "num_devices", "min_examples", "words"),
    [
        (["only"] * 50, 2, 1, "got 1 of 1 clients"),
        (["a", "a", "b"], 2, 2, "at least 2 training examples .* got 1 of 2 clients"),
        (["a"], 0, 1, "number of devices must be at least 1, got 0"),
    ],
)
def test_fewer_clients_than_devices_are_refused(
    clients: list[str], num_devices: int, min_examples: int, words: str
) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=words):
        natural_shards(clients, num_devices, rng=rng, min_examples=min_examples)


@settings(deadline=None)
@given(per_device=st.integers(1, 6), num_devices=st.integers(1, 30), seed=st.integers(0, 99))
def test_each_device_holds_so_many_classes_and_no_example_is_held_twice(
    per_device: int, num_devices: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shards = few_group_shards(LABELS, num_devices, per_device=per_device, rng=rng)
    assert [len(set(LABELS[shard])) for shard in shards] == [per_device] * num_devices
    held = np.concatenate(shards)
    assert len(set(held.tolist())) == len(held)
    holders = [sum(label in LABELS[shard] for shard in shards) for label in range(NUM_CLASSES)]
    assert max(holders) - min(holders) <= 1
    of_each = [np.bincount(LABELS[shard], minlength=NUM_CLASSES) for shard in shards]
    for label, count in enumerate(holders):  # the holders of a class have all of it, in equal parts
        parts = [int(each[label]) for each in of_each if each[label]]
        assert sum(parts) == (PER_CLASS if count else 0)
        assert max(parts, default=0) - min(parts, default=0) <= 1


@pytest.mark.parametrize(
    ("per_device", "num_devices", "words"),
    [
        (0, 3, r"per_device must be in \[1, 16\], the number of groups, got 0"),
        (17, 3, "got 17"),
        (16, 801, "an example for each of the 801 devices that hold it, got 800"),
    ],
)
def test_groups_that_do_not_suffice_are_said_in_words(
    per_device: int, num_devices: int, words: str
) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=words):
        few_group_shards(LABELS, num_devices, per_device=per_device, rng=rng)


def test_log_normal_sizes_sum_to_all_and_have_the_spread_that_is_asked_for() -> None:
    rng = np.random.default_rng(0)
    sizes = log_normal_sizes(10_000_000, 2000, sigma=0.8, min_examples=1, rng=rng)
    assert sizes.sum() == 10_000_000
    assert sizes.min() >= 1
    # The standard error of a standard deviation of 2000 normal numbers is 0.8 / sqrt(4000) = 0.013.
    assert np.log(sizes).std() == pytest.approx(0.8, abs=0.05)
    even = log_normal_sizes(100, 7, sigma=0.0, min_examples=3, rng=rng)
    assert even.sum() == 100
    assert even.max() - even.min() <= 1
    with pytest.raises(ValueError, match="at least 21 training examples"):
        log_normal_sizes(20, 7, sigma=1.0, min_examples=3, rng=rng)


def test_shards_have_the_sizes_that_are_given() -> None:
    rng = np.random.default_rng(0)
    shards = sized_shards(100, (5, 60, 1), rng=rng)
    assert [len(shard) for shard in shards] == [5, 60, 1]
    held = np.concatenate(shards)
    assert len(set(held.tolist())) == 66
    assert all((np.diff(shard) > 0).all() for shard in shards)
    with pytest.raises(ValueError, match="at most the 100 training examples, got 101"):
        sized_shards(100, (100, 1), rng=rng)


def test_the_statistics_of_a_partition_tell_size_and_skew() -> None:
    groups = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    shards = [np.array([0, 1, 2]), np.array([3]), np.array([4, 5, 6, 7])]
    found = partition_statistics(shards, groups)
    assert (found["devices"], found["examples held"]) == (3, 8)
    assert (found["examples, fewest"], found["examples, median"], found["examples, most"]) == (
        1, 3, 4,
    )  # fmt: skip
    assert found["groups a device, mean"] == 1
    assert found["share of a device's largest group, mean"] == 1
    assert found["distance from the whole, largest"] == 1 - 3 / 8
    assert found["distance from the whole, mean"] == pytest.approx((5 + 3 + 3) / 24)
    assert "groups in all" not in partition_statistics(shards, None)


@given(st.integers(0, 2**32), st.sampled_from([0.01, 0.5, 100.0]), st.integers(1, 50))
def test_drawn_shards_are_those_of_numpys_weighted_choice(
    seed: int, alpha: float, num_examples: int
) -> None:
    def rngs(devices: Sequence[int]) -> list[np.random.Generator]:
        return [np.random.default_rng([seed, device]) for device in devices]

    groups = np.random.default_rng(seed).integers(0, 5, 200)
    shards = DrawnShards(groups, 3, num_examples, alpha, rngs)
    rng = np.random.default_rng([seed, 2])
    names, counts = np.unique(groups, return_counts=True)
    shares = rng.dirichlet(np.full(len(names), alpha))
    drawn = rng.choice(len(names), size=num_examples, p=shares)
    within = np.floor(rng.random(num_examples) * counts[drawn]).astype(np.int64)
    rows = [
        np.flatnonzero(groups == names[k])[place] for k, place in zip(drawn, within, strict=True)
    ]
    assert shards[2].tolist() == sorted(rows)
    assert [examples.tolist() for examples in shards.each([0, 2])][1] == sorted(rows)


def test_a_million_clients_are_divided_as_few_are() -> None:
    clients = [f"client{k}" for k in range(1_000_000)]
    shards = natural_shards(clients, 1000, rng=np.random.default_rng(0))
    held = np.concatenate(shards)
    assert len(held) == len(set(held.tolist())) == 1000
    with pytest.raises(ValueError, match=r"got 0 of 1000000 clients"):
        natural_shards(clients, 3, rng=np.random.default_rng(0), min_examples=2)
