"""Builds the world of a run, the same for every strategy: model, data, devices and costs."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from algorithms.registry import STRATEGIES
from devices.cost.closed_form import ClosedFormCost
from devices.cost.measured import MeasuredCost
from devices.cost.proxy import ProxyCost
from devices.datasets.partition import DividedShards
from devices.fleet.fleet import Fleet
from devices.models.catalog import ModelSource, resolve
from devices.models.spec import ModelSpec
from devices.options import TrainingOptions
from devices.tasks.registry import load_task, smoothed
from devices.tasks.task import Task
from simulator.config.experiment import ConfigError
from simulator.config.fleet import NetworkConfig
from simulator.config.origin import Origin
from simulator.config.problems import Problems
from simulator.config.schema import RunConfig, section_json
from simulator.engine.conditions import Conditions
from simulator.engine.faults import Faults, draw_faults
from simulator.engine.modes import NO_MODES, PowerModes
from simulator.engine.network import NOTHING_SHARED, SharedLinks
from simulator.world.costs import (
    closed_form,
    larger_source,
    model_of,
    proxy_cost,
    with_measured_times,
)
from simulator.world.fleet import draw_fleet
from simulator.world.groups import open_groups
from simulator.world.modes import draw_modes
from simulator.world.network import open_network
from simulator.world.one_place import steps_problem
from simulator.world.recorded import read_conditions
from simulator.world.shards import draw_shards, split_own_tests
from simulator.world.smallest_plans import check_budgets
from traces.arrays import IntArray

SIZE_OF_GROUP = re.compile(
    r"fleet\.devices\.\d+\.(count|memory_share|memory_bytes|runtime_bytes)(\.\d+)?"
)
"""Pattern of the keys of a group that do not affect the files and names in it."""

READ_BY: Mapping[str, Collection[str]] = {
    "task.data": (
        *("task", "task.kind", "task.columns", "task.template", "task.answer_tokens"),
        *("task.edition", "shards", "shards.kind", "shards.column", "shards.group_by"),
    ),
    "task.model": ("task.revision",),
    "cost.model": ("cost.revision",),
}
"""For each key that names a source, the keys that say how the source is read."""


@dataclass(frozen=True, eq=False, kw_only=True)
class World(Conditions):
    """The world of a run holds its conditions, and the model and task that they were made from."""

    source: ModelSource
    """The origin of the model that is trained."""
    task: Task
    """What the model learns, with its data."""
    own_tests: Sequence[IntArray]
    """The examples that each device keeps from training, as indices; empty where it keeps none."""
    cost_source: ModelSource | None
    """The origin of the larger model that costs are charged for; None: the one that is trained."""

    @cached_property
    def conditions_hash(self) -> str:
        """Return the SHA-256 of what all schedulers meet: devices, traces, shards, faults."""
        faults = section_json(self.faults.config) + str(self.faults.seed)
        sha = hashlib.sha256((self.fleet.conditions_hash() + faults).encode())
        if isinstance(self.cost_model, MeasuredCost):
            sha.update(repr(self.cost_model.steps).encode())
        self.shared_links.hash_into(sha)
        self.modes.hash_into(sha)
        return sha.hexdigest()


def build_world(config: RunConfig, where: str | Origin) -> World:
    """Load and draw everything that the config names.

    Raises ConfigError with every name that does not exist and every number that cannot work.
    """
    problems = Problems()
    task, source, cost_source = _read_names(config, problems)
    model = problems.attempt("task", partial(model_of, config, source, task)) if source else None
    priced: ClosedFormCost | ProxyCost | None = None
    if source and model:
        priced = problems.attempt("cost", partial(closed_form, config, source, model))
    if cost_source and model:
        large = partial(proxy_cost, config, cost_source, task=task, proxy=model)
        priced = problems.attempt("cost.model", large)
    _check_options(config, task, model, problems)
    met = _devices(config, task, problems)
    if problems.found or not (source and model and task and met):
        raise ConfigError(problems.found, where)
    fleet, faults, shared_links, modes, own_tests = met
    if config.fleet.recorded:
        _check_examples(fleet, task, problems)
    cost_model = priced and problems.attempt(
        "cost.table", partial(with_measured_times, config, priced)
    )
    _check_rates(config, fleet, problems)
    if getattr(config.strategy, "is_centralized", False) and (why := steps_problem(config, fleet)):
        problems.add(why)
    if not problems.found and priced:
        check_budgets(config, fleet, model=model, cost_model=priced, problems=problems)
    if problems.found or cost_model is None:
        raise ConfigError(problems.found, where)
    logging.getLogger("fedclock").info(
        "%s: model %s (%.12s), data %s (%.12s), %d devices, conditions cost as %s",
        config.label, source.name, source.sha256, task.data.name, task.data.sha256, len(fleet),
        (cost_source or source).name,
    )  # fmt: skip
    return World(
        model=model,
        metrics=task.metrics,
        fleet=fleet,
        faults=faults,
        shared_links=shared_links,
        modes=modes,
        cost_model=cost_model,
        source=source,
        task=task,
        own_tests=own_tests,
        cost_source=cost_source,
    )


def wrong_names(config: RunConfig, wrong: Collection[str]) -> list[str]:
    """Return what is wrong with the files and names of a config of which some keys are wrong too.

    Nothing is said of a section with a wrong key in it, for it may follow from that.
    """
    doubtful = {_section(key) for key in wrong if not SIZE_OF_GROUP.fullmatch(key)}
    doubtful |= {name for name, keys in READ_BY.items() if doubtful.intersection(keys)}
    problems = Problems()
    _read_names(config, problems)
    groups = open_groups(config.fleet, config.seed, problems)
    draw_fleet(config, groups, DividedShards(()), problems)
    if not any(section.startswith("network") for section in doubtful):
        open_network(config.network, groups, problems)
    return [
        problem
        for problem in problems.found
        if not any(f"{_section(problem)}.".startswith(f"{section}.") for section in doubtful)
    ]


def _section(key: str) -> str:
    """Return what a key, or a problem that begins with one, belongs to: a group, or two keys."""
    found = re.match(r"fleet\.devices\.\d+|\w+(\.\w+)?", key)
    return found[0] if found else ""


def _read_names(
    config: RunConfig, problems: Problems
) -> tuple[Task | None, ModelSource | None, ModelSource | None]:
    """Return the task with its data, the model, and the larger model that costs are charged for."""
    named = config.task
    shards = config.shards
    beside = (shards.column,) if shards.kind == "natural" else ()
    beside = (*beside, shards.group_by) if shards.group_by else beside
    load = partial(
        load_task,
        named.kind,
        named.data,
        named=named.columns,
        beside=beside,
        options=named.options,
        edition=named.edition,
    )
    task = problems.attempt("task.data", load)
    find = partial(resolve, named.model, named.revision, sizes_only=config.training == "none")
    source = problems.attempt("task.model", find)
    cost_source = problems.attempt("cost.model", partial(larger_source, config))
    return task, source, cost_source


def _devices(
    config: RunConfig, task: Task | None, problems: Problems
) -> tuple[Fleet, Faults, SharedLinks, PowerModes, Sequence[IntArray]] | None:
    """Return the devices, their faults, links, modes and own tests, drawn or as recorded."""
    groups = open_groups(config.fleet, config.seed, problems)
    recorded, shared_links = None, NOTHING_SHARED
    if config.fleet.recorded:
        read = partial(read_conditions, config.fleet.recorded)
        recorded, shared_links = problems.attempt("fleet.recorded", read) or (None, NOTHING_SHARED)
        if config.network != NetworkConfig():
            problems.add("network must be left out: recorded conditions hold what is shared")
    else:
        shared_links = open_network(config.network, groups, problems)
    count = len(recorded) if recorded else sum(group.count for group in groups)
    wanted = config.pacing.slots(in_flight=0, buffered=0)
    if wanted > count and not problems.found:
        problems.add(f"pacing must ask for at most the {count} devices of the fleet, got {wanted}")
    faults = partial(draw_faults, config.faults, count, seed=config.seed, problems=problems)
    if recorded:
        if config.evaluation.own_share:
            problems.add(
                "evaluation.own_share must be 0 with fleet.recorded, which holds what each device "
                f"trains on and no test examples, got {config.evaluation.own_share:g}"
            )
        return recorded, faults(), shared_links, NO_MODES, ()
    shards = task and problems.attempt("shards", partial(draw_shards, config, task, count))
    shards, own_tests = split_own_tests(config, shards or DividedShards(()), problems)
    fleet = draw_fleet(config, groups, shards, problems)
    modes = draw_modes(config.seed, groups, problems)
    return (fleet, faults(), shared_links, modes, own_tests) if len(shards.sizes()) else None


def _check_options(
    config: RunConfig, task: Task | None, model: ModelSpec | None, problems: Problems
) -> None:
    """Check what the task, the model and the strategy allow of each other's options."""
    if task:
        _check_target(config, task, problems)
    _check_training(config, task, problems)
    if config.task.packing == "packed" and config.local.epochs is not None:
        problems.add(
            "local.steps must be given with task.packing packed, since how many rows an epoch has "
            f"follows from the tokens of its texts, got epochs {config.local.epochs:g}"
        )
    if config.server_optimizer and not getattr(config.strategy, "is_mean", False):
        known = ", ".join(kind for kind, strategy in STRATEGIES.items() if strategy.is_mean)
        problems.add(
            f"server_optimizer must be left out under {config.strategy.kind}, whose aggregation is "
            f"no mean of what devices send, got {config.server_optimizer.kind}; it is possible "
            f"under {known}"
        )
    if not getattr(config.strategy, "has_global_model", True):
        _check_without_global_model(config, problems)
    if model and config.strategy.rank > model.max_rank:
        problems.add(
            f"strategy.rank must be in [1, {model.max_rank}], the smallest side of the adapted "
            f"matrices, got {config.strategy.rank}"
        )


def _check_without_global_model(config: RunConfig, problems: Problems) -> None:
    """Check that a run whose devices share no model is judged by the models that they have."""
    kind = config.strategy.kind
    if config.stop.target is not None:
        problems.add(
            f"stop.target must be left out under {kind}, which has no global model to be tested, "
            f"got {config.stop.target}"
        )
    if config.training != "none" and not config.evaluation.own_share:
        problems.add(
            f"evaluation.own_share must be above 0 under {kind}, whose devices' models are tested "
            "on their own test data alone, got 0"
        )


def _check_target(config: RunConfig, task: Task, problems: Problems) -> None:
    """Check that every target is a value of the metric that the task is judged by."""
    first, stop = task.metrics[0], config.stop
    if stop.target is not None and first.unit == "share" and stop.target > 1:
        problems.add(f"stop.target must be in (0, 1] for {first.name}, got {stop.target}")
    if first.unit == "share" and max(config.targets, default=0.0) > 1:
        problems.add(
            f"targets must be in (0, 1] for {first.name}, got {', '.join(map(str, config.targets))}"
        )


def _check_training(config: RunConfig, task: Task | None, problems: Problems) -> None:
    """Check that the schedule ends within the run, and that the task can smooth its targets."""
    training = config.training
    if training == "none":
        return
    problems.attempt(
        "training.schedule", partial(training.schedule.check_rounds, config.stop.rounds)
    )
    if getattr(config.strategy, "needs_plain_sgd", False):
        _check_plain_sgd(config.strategy.kind, training, problems)
    if task:
        smooth = partial(smoothed, task, training.label_smoothing)
        problems.attempt("training.label_smoothing", smooth)


def _check_plain_sgd(kind: str, training: TrainingOptions, problems: Problems) -> None:
    """Check that what a device moves by is the rate times the sum of its gradients."""
    rules = {
        f"optimizer must be sgd under {kind}, got {training.optimizer}": (
            training.optimizer == "sgd"
        ),
        f"momentum must be 0 under {kind}, got {training.sgd_momentum:g}": (
            training.sgd_momentum == 0
        ),
        f"clip_norm must be left out under {kind}, got {training.clip_norm}": (
            training.clip_norm is None
        ),
    }
    for rule, holds in rules.items():
        if not holds:
            problems.add(f"training.{rule}: its control variates are means of gradients")


def _check_rates(config: RunConfig, fleet: Fleet, problems: Problems) -> None:
    """Check that every profile has the rate that is asked for, and a name of its own."""
    bits, by_name = config.cost.compute_bits, {p.name: p for p in fleet.profiles}
    for profile in by_name.values():
        if bits not in profile.flops_per_s:
            problems.add(
                f"cost.compute_bits must be one of {', '.join(map(str, profile.flops_per_s))} for "
                f"{profile.name}, got {bits}"
            )
    for profile in fleet.profiles:
        if by_name[profile.name] != profile:
            problems.add(f"fleet: two different profiles must not have one name, {profile.name}")


def _check_examples(fleet: Fleet, task: Task, problems: Problems) -> None:
    """Check that recorded shards are of this training set, since they are indices into one."""
    held = np.concatenate([fleet.shards[k] for k in range(len(fleet))])
    num_examples = len(task.data.train)
    wrong = held[(held < 0) | (held >= num_examples)]
    if len(wrong):
        problems.add(
            f"fleet.recorded: the devices must hold examples of {task.data.name}, which has "
            f"{num_examples}, got number {wrong[0]}"
        )
