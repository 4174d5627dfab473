"""Divides the training examples among the devices, and keeps some of each to test it on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from devices.datasets.own_tests import split_own
from devices.datasets.partition import (
    DividedShards,
    DrawnShards,
    dirichlet_shards,
    few_group_shards,
    iid_shards,
    log_normal_sizes,
    natural_shards,
    sized_shards,
)
from devices.fleet.fleet import Shards
from devices.tasks.task import Task
from simulator.config.problems import Problems
from simulator.config.schema import RunConfig
from simulator.engine.seeds import NumberedStreams, stream
from traces.arrays import IntArray


def draw_shards(config: RunConfig, task: Task, count: int) -> Shards:
    """Return what each of ``count`` devices holds. Raises ValueError where it cannot be so."""
    shards, num_examples = config.shards, len(task.data.train)
    rng = stream(config.seed, "shards")
    if shards.kind == "iid":
        return DividedShards(iid_shards(num_examples, count, rng=rng))
    if shards.kind == "natural":
        clients = task.data.train[shards.column]
        return DividedShards(
            natural_shards(clients, count, rng=rng, min_examples=shards.min_examples)
        )
    if shards.kind == "log-normal":
        sizes = log_normal_sizes(
            num_examples, count, sigma=shards.sigma, min_examples=shards.min_examples, rng=rng
        ).tolist()
        return DividedShards(sized_shards(num_examples, sizes, rng=rng))
    if shards.kind == "sizes":
        if len(shards.sizes) != count:
            raise ValueError(
                f"sizes must be one for each of the {count} devices, got {len(shards.sizes)}"
            )
        return DividedShards(sized_shards(num_examples, shards.sizes, rng=rng))
    groups = shard_groups(config, task)
    if groups is None:
        raise ValueError(
            f"kind must be iid, natural, log-normal or sizes for {task.kind}, whose examples are "
            f"of no groups to divide by, got {shards.kind}; name a column in group_by"
        )
    if shards.kind == "few-groups":
        per_device = shards.per_device
        return DividedShards(few_group_shards(groups, count, per_device=per_device, rng=rng))
    if shards.kind == "dirichlet":
        return DividedShards(
            dirichlet_shards(
                groups, count, alpha=shards.alpha, rng=rng, min_examples=shards.min_examples
            )
        )
    rngs = NumberedStreams(config.seed, "shards").many
    return DrawnShards(groups, count, shards.examples, shards.alpha, rngs)


def shard_groups(config: RunConfig, task: Task) -> IntArray | None:
    """Return the group of each training example that shards are skewed by, (n,), if any."""
    column = config.shards.group_by
    if column is None:
        return task.groups("train")
    _, groups = np.unique(np.array(task.data.train[column], dtype=object), return_inverse=True)
    return groups.astype(np.int64)


def split_own_tests(
    config: RunConfig, shards: Shards, problems: Problems
) -> tuple[Shards, Sequence[IntArray]]:
    """Return what devices train on, and the examples that each keeps to be tested on."""
    share = config.evaluation.own_share
    if not share:
        return shards, ()
    if not isinstance(shards, DividedShards):
        problems.add(
            f"evaluation.own_share must be 0 with shards.kind {config.shards.kind}, under which "
            f"devices hold the same examples, got {share:g}"
        )
        return shards, ()
    training, tests = split_own(shards.shards, share, partial(stream, config.seed, "own tests"))
    if config.training != "none" and not any(map(len, tests)) and len(training):
        problems.add(
            "evaluation.own_share must leave at least one device an example to be tested on, got "
            f"{share:g} of at most {max(map(len, training))}"
        )
    return DividedShards(training), tests
