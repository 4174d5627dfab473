"""Builds the world of a run, the same for every strategy: model, data, devices and costs."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from algorithms.registry import STRATEGIES
from devices.architectures import model_spec, plan_costs
from devices.cost.closed_form import ClosedFormCost
from devices.cost.measured import MeasuredCost, read_steps
from devices.cost.model import CostModel
from devices.cost.optimizers import ADAMW, OptimizerCost
from devices.cost.proxy import ProxyCost
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
from devices.fleet.fleet import Fleet, Shards
from devices.models.catalog import ModelSource, resolve
from devices.models.families import Sizes, same_roles
from devices.models.heads import text_head
from devices.models.spec import ModelSpec
from devices.tasks.registry import load_task, smoothed
from devices.tasks.task import Task
from devices.vocabulary.number_formats import GROUP
from devices.vocabulary.plan import BlockFormat, DeviceId, TermGrid, TrainingPlan
from devices.vocabulary.trainer import NullTrainer
from simulator.config.experiment import ConfigError
from simulator.config.fleet import NetworkConfig
from simulator.config.origin import Origin
from simulator.config.problems import Problems
from simulator.config.schema import RunConfig, section_json
from simulator.engine.conditions import Conditions
from simulator.engine.faults import Faults, draw_faults
from simulator.engine.modes import NO_MODES, PowerModes
from simulator.engine.network import NOTHING_SHARED, SharedLinks
from simulator.engine.seeds import stream
from simulator.engine.server_view import ServerView
from simulator.world.fleet import draw_fleet
from simulator.world.groups import open_groups
from simulator.world.modes import draw_modes
from simulator.world.network import open_network
from simulator.world.private import Rehearsed, check_private
from simulator.world.recorded import read_conditions
from traces.arrays import BoolArray, IntArray

MAX_REHEARSED = 1_000

SIZE_OF_GROUP = re.compile(
    r"fleet\.devices\.\d+\.(count|memory_share|memory_bytes|runtime_bytes)(\.\d+)?"
)
"""Keys of a group on which nothing that it names depends."""

READ_BY: Mapping[str, Collection[str]] = {
    "task.data": (
        *(
            "task",
            "task.kind",
            "task.columns",
            "task.template",
            "task.answer_tokens",
            "task.edition",
        ),
        *("shards", "shards.kind", "shards.column", "shards.group_by"),
    ),
    "task.model": ("task.revision",),
    "cost.model": ("cost.revision",),
}
"""The keys that say how what another key names is read."""


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
        """SHA-256 of all that every scheduler must meet alike: devices, traces, shards, faults."""
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
    model = source and problems.attempt("task", partial(_model, config, source, task))
    priced: ClosedFormCost | ProxyCost | None = None
    if source and model:
        priced = problems.attempt("cost", partial(_closed_form, config, source, model))
    if cost_source and model:
        large = partial(_proxy_cost, config, cost_source, task=task, proxy=model)
        priced = problems.attempt("cost.model", large)
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
    if model and config.strategy.rank > model.max_rank:
        problems.add(
            f"strategy.rank must be in [1, {model.max_rank}], the smallest side of the adapted "
            f"matrices, got {config.strategy.rank}"
        )
    met = _devices(config, task, problems)
    if problems.found or not (source and model and task and met):
        raise ConfigError(problems.found, where)
    fleet, faults, shared_links, modes, own_tests = met
    if config.fleet.recorded:
        _check_examples(fleet, task, problems)
    cost_model = priced and problems.attempt("cost.table", partial(_cost_model, config, priced))
    _check_rates(config, fleet, problems)
    if not problems.found and priced:
        _check_budgets(config, fleet, model=model, cost_model=priced, problems=problems)
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
    cost_source = problems.attempt("cost.model", partial(_cost_source, config))
    return task, source, cost_source


def _cost_source(config: RunConfig) -> ModelSource | None:
    cost = config.cost
    return resolve(cost.model, cost.revision, sizes_only=True) if cost.model else None


def _closed_form(config: RunConfig, source: ModelSource, model: ModelSpec) -> ClosedFormCost:
    return plan_costs(
        source,
        model,
        config.task.max_length,
        compute_bits=config.cost.compute_bits,
        lora_dropout=config.cost.lora_dropout,
        optimizer=ADAMW if config.training == "none" else OptimizerCost.of(config.training),
    )


def _proxy_cost(
    config: RunConfig, source: ModelSource, *, task: Task | None, proxy: ModelSpec
) -> ProxyCost:
    named = config.task
    head = task.head(source.config) if task else text_head(2)  # as that of the proxy
    targets = config.cost.targets or same_roles(named.targets, source.config)
    large = model_spec(source, targets, head=head, attention=config.cost.attention)
    _check_length(named.max_length, source, large)
    return ProxyCost(proxy, _closed_form(config, source, large))


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
    shards = task and problems.attempt("shards", partial(_shards, config, task, count))
    shards, own_tests = _split(config, shards or DividedShards(()), problems)
    fleet = draw_fleet(config, groups, shards, problems)
    modes = draw_modes(config.seed, groups, problems)
    return (fleet, faults(), shared_links, modes, own_tests) if len(shards.sizes()) else None


def _split(
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
    """A schedule must end within the run, and targets be of a kind that can be smoothed."""
    training = config.training
    if training == "none":
        return
    problems.attempt(
        "training.schedule", partial(training.schedule.check_rounds, config.stop.rounds)
    )
    if task:
        smooth = partial(smoothed, task, training.label_smoothing)
        problems.attempt("training.label_smoothing", smooth)


def _model(config: RunConfig, source: ModelSource, task: Task | None) -> ModelSpec:
    named = config.task
    # Where the data cannot be read, what else is wrong is said too, at a head of any size.
    head = task.head(source.config) if task else text_head(2)
    sized = partial(model_spec, source, named.targets, head=head)
    try:
        model = sized(attention=config.cost.attention)
        if config.training != "none" and config.training.attention != model.attention:
            sized(attention=config.training.attention)
    except OverflowError as error:
        raise ValueError(f"config.json of {source.name} has sizes too large: {error}") from None
    _check_length(named.max_length, source, model)
    odd = [layer.name for layer in model.linears if layer.num_weights % GROUP]
    if odd:
        raise ValueError(
            f"the matrices of {named.model} must have a multiple of {GROUP} elements, so that they "
            f"can be packed by groups, but {', '.join(odd)} have not"
        )
    return model


def _check_length(max_length: int, source: ModelSource, model: ModelSpec) -> None:
    longest = (
        model.outline.max_length
        if model.outline
        else Sizes(source.config)["max_position_embeddings"]
    )
    if max_length > longest:
        raise ValueError(
            f"max_length must be at most the {longest} positions of {source.name}, got {max_length}"
        )


def _cost_model(config: RunConfig, priced: ClosedFormCost | ProxyCost) -> CostModel:
    if config.cost.table is None or isinstance(priced, ProxyCost):
        return priced
    return MeasuredCost(priced, tuple(read_steps(config.cost.table)))


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


def _shards(config: RunConfig, task: Task, count: int) -> Shards:
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
    own = partial(stream, config.seed, "shards")
    return DrawnShards(groups, count, shards.examples, shards.alpha, own)


def shard_groups(config: RunConfig, task: Task) -> IntArray | None:
    """Return the group of each training example that shards are skewed by, (n,), if any."""
    column = config.shards.group_by
    if column is None:
        return task.groups("train")
    _, groups = np.unique(np.array(task.data.train[column], dtype=object), return_inverse=True)
    return groups.astype(np.int64)


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


def _check_budgets(
    config: RunConfig,
    fleet: Fleet,
    *,
    model: ModelSpec,
    cost_model: CostModel,
    problems: Problems,
) -> None:
    """Check that every device can hold the smallest plan; else it could never take part."""
    profile = fleet[0].profile  # peak memory is the same on all
    floor = min(cost_model.cost(p, profile).memory.total for p in smallest_plans(config, model))
    short = np.flatnonzero(fleet.memory_budget_bytes < floor)
    if not len(short):
        return
    device = int(short[np.argmin(fleet.memory_budget_bytes[short])])
    is_shared = min(getattr(config.fleet, "memory_share", (1.0,))) < 1
    problems.add(
        f"fleet{'.memory_share' * is_shared}: a device must hold at least the smallest plan, "
        f"{floor / 1e6:.1f} MB (one term in one block of 4-bit weights, the others absent; raise "
        f"memory_share or lower local.batch_size), got {len(short)} that hold less, the least "
        f"{fleet.memory_budget_bytes[device] / 1e6:.1f} MB: device {device}, "
        f"{fleet.profile_of(device).name}"
    )


def rehearse(
    config: RunConfig, world: World, where: str | Origin
) -> tuple[Sequence[DeviceId], Sequence[TrainingPlan]]:
    """Let the strategy plan for the fleet once; return the devices that it was asked, and plans.

    In a large fleet it plans for about ``MAX_REHEARSED`` devices, evenly spread. Raises ConfigError
    where it cannot plan at all. No model is loaded: every block counts as equally salient.
    """
    view = ServerView(world, config.local, NullTrainer(world.model.num_blocks))
    rng = stream(config.seed, "rehearsal")
    strategy = config.strategy
    state = strategy.init(world.model.initial_adapter(strategy.rank, strategy.alpha, rng))
    try:
        cohort = view.device_ids[:: -(-len(world.fleet) // MAX_REHEARSED)]
        plans = strategy.plan(state, view, cohort, rng)
    except ValueError as error:
        raise ConfigError([f"strategy: {error}"], where) from None
    if config.aggregation.trim_share and any(plan.terms.use == "fresh" for plan in plans):
        raise ConfigError(
            [
                f"aggregation.trim_share must be 0 under {strategy.kind}, whose devices start from "
                f"factors of their own: no two have a coordinate in common; clip_norm is possible"
            ],
            where,
        )
    if config.privacy:
        planned = {plan.device_id for plan in plans}
        idle = [device for device in cohort if device not in planned]
        check_private(config, world, Rehearsed(state, plans, idle), where)
    return cohort, plans


def smallest_plans(config: RunConfig, model: ModelSpec) -> Iterator[TrainingPlan]:
    """Return the smallest plans that any strategy could make: one for each way to keep activations.

    None is the smallest for every model: packing saves memory that a block holds, and needs room
    while it unpacks.
    """
    terms: BoolArray = np.zeros(model.grid_shape(config.strategy.rank), dtype=np.bool_)
    terms[-1, 0, 0] = True
    absent: BlockFormat = "absent"
    for bits in (32, 4, 0):
        yield TrainingPlan(
            device_id=0,
            terms=TermGrid(terms, terms, np.where(terms, 2, 0).astype(np.uint8)),
            weight_formats=(*[absent] * (model.num_blocks - 1), "nf4"),
            activation_bits=(bits,) * model.num_blocks,
            local_steps=1,
            batch_size=config.local.batch_size,
            proximal_mu=config.local.proximal_mu,
            micro_batch=config.local.micro_batch,
        )
