"""Builds what a run meets, the same for every strategy: model, data, devices and their costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from devices import catalog as device_catalog
from devices.cost.closed_form import ClosedFormCost
from devices.cost.model import CostModel
from devices.cost.saved import GROUP
from devices.data import TextDataset, load_dataset
from devices.fleet import Device
from devices.model_catalog import ModelSource, resolve
from devices.model_spec import ModelSpec
from devices.partition import dirichlet_shards, iid_shards
from devices.plan import BoolArray, DeviceId, TermGrid, TrainingPlan, WeightFormat
from devices.profile import DeviceProfile
from devices.trainer import NullTrainer, Trainer
from simulator.config import DeviceGroup, RunConfig
from simulator.experiment import ConfigError
from simulator.fleet_view import LocalWork, ServerView
from simulator.seeds import stream
from traces import catalog as trace_catalog
from traces.bandwidth import Link

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class World:
    """The conditions of a run. They follow from config and seed, never from the strategy."""

    source: ModelSource
    model: ModelSpec
    data: TextDataset
    fleet: tuple[Device, ...]
    cost_model: CostModel


def build_world(config: RunConfig, where: str) -> World:
    """Load and draw everything that the config names.

    Raises ConfigError with every name that does not exist and every number that cannot work.
    """
    problems = _Problems()
    task = config.task
    data = problems.attempt("task.data", lambda: load_dataset(task.data))
    source = problems.attempt("task.model", lambda: resolve(task.model))
    model = source and problems.attempt("task", partial(_model, config, source, data))
    groups = [
        (group, problems.attempt(f"fleet.devices.{k}", partial(_Kind.load, group)))
        for k, group in enumerate(config.fleet.devices)
    ]
    if model and config.strategy.rank > model.max_rank:
        problems.add(
            f"strategy.rank must be in [1, {model.max_rank}], the smallest side of the adapted "
            f"matrices, got {config.strategy.rank}"
        )
    wanted = config.pacing.slots(in_flight=0, buffered=0)
    if wanted > config.fleet.num_devices:
        problems.add(
            f"pacing must ask for at most the {config.fleet.num_devices} devices of the fleet, "
            f"got {wanted}"
        )
    shards = data and problems.attempt("shards", lambda: _shards(config, data.train_labels))
    if problems.found or not (source and model and data and shards):
        raise ConfigError(problems.found, where)
    cost_model = ClosedFormCost(model, task.max_length, compute_bits=config.cost.compute_bits)
    kinds = [(group, kind) for group, kind in groups if kind]
    fleet = _draw_fleet(config, kinds, shards)
    _check_budgets(config, fleet, model=model, cost_model=cost_model, problems=problems)
    if problems.found:
        raise ConfigError(problems.found, where)
    return World(source, model, data, fleet, cost_model)


class _Problems:
    """Collects what is wrong, so that all of it can be said at once."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, problem: str) -> None:
        self.found.append(problem)

    def attempt(self, key: str, load: Callable[[], T]) -> T | None:
        try:
            return load()
        except ValueError as error:
            self.add(f"{key}: {error}")
            return None


@dataclass(frozen=True, eq=False)
class _Kind:
    """What the devices of one group have in common."""

    profile: DeviceProfile
    links: Sequence[Link]

    @classmethod
    def load(cls, group: DeviceGroup) -> _Kind:
        return cls(
            device_catalog.profile(group.profile),
            trace_catalog.pool(group.link, uplink_scale=group.uplink_scale),
        )


def _model(config: RunConfig, source: ModelSource, data: TextDataset | None) -> ModelSpec:
    task, classes = config.task, data.num_classes if data else 2
    try:
        longest = int(source.config["max_position_embeddings"])
        model = ModelSpec.from_config(task.model, source.config, task.targets, classes)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"config.json of {task.model} lacks or garbles {error}") from None
    if task.max_length > longest:
        raise ValueError(
            f"max_length must be at most the {longest} positions of {task.model}, "
            f"got {task.max_length}"
        )
    odd = [layer.name for layer in model.linears if layer.num_weights % GROUP]
    if odd:
        raise ValueError(
            f"the matrices of {task.model} must have a multiple of {GROUP} elements, so that they "
            f"can be packed by groups, but {', '.join(odd)} have not"
        )
    return replace(model, attention=config.cost.attention)


def _shards(config: RunConfig, labels: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    rng, count = stream(config.seed, "shards"), config.fleet.num_devices
    if config.shards.kind == "iid":
        return iid_shards(len(labels), count, rng=rng)
    shards = config.shards
    return dirichlet_shards(
        labels, count, alpha=shards.alpha, rng=rng, min_examples=shards.min_examples
    )


def _draw_fleet(
    config: RunConfig,
    kinds: Sequence[tuple[DeviceGroup, _Kind]],
    shards: Sequence[npt.NDArray[np.int64]],
) -> tuple[Device, ...]:
    """One device after the other, each from streams of its own: one more moves no other."""
    members = [(group, kind) for group, kind in kinds for _ in range(group.count)]
    fleet = []
    for device_id, (group, kind) in enumerate(members):
        shares = group.memory_share or config.fleet.memory_share
        share = stream(config.seed, "memory_share", device_id).uniform(shares[0], shares[-1])
        rng = stream(config.seed, "link", device_id)
        link = kind.links[int(rng.integers(len(kind.links)))]
        offset_s = float(rng.uniform(0.0, link.downlink.period_s))
        fleet.append(
            Device(
                device_id=device_id,
                profile=kind.profile,
                memory_budget_bytes=int(share * kind.profile.memory_bytes),
                link=Link(
                    link.name, link.downlink.shifted(offset_s), link.uplink.shifted(offset_s)
                ),
                examples=shards[device_id],
            )
        )
    return tuple(fleet)


def _check_budgets(
    config: RunConfig,
    fleet: Sequence[Device],
    *,
    model: ModelSpec,
    cost_model: CostModel,
    problems: _Problems,
) -> None:
    """A device that cannot hold the smallest plan there is would be dead weight in every run."""
    profile = fleet[0].profile  # peak memory is the same on all
    floor = min(cost_model.cost(p, profile).memory.total for p in smallest_plans(config, model))
    for device in fleet:
        if device.memory_budget_bytes < floor:
            problems.add(
                f"fleet: a device must hold at least the smallest plan, {floor / 1e6:.1f} MB "
                f"(one term in the top block, 4-bit weights), got "
                f"{device.memory_budget_bytes / 1e6:.1f} MB for device {device.device_id}, "
                f"{device.profile.name}; raise memory_share or lower local.batch_size"
            )


def rehearse(config: RunConfig, world: World, where: str) -> tuple[DeviceId, ...]:
    """Let the strategy plan for the whole fleet once; return the devices that it has no plan for.

    Raises ConfigError where it cannot plan at all. The model is not loaded for it: every block
    counts as equally salient.
    """
    view = make_view(config, world, NullTrainer(world.model.num_blocks))
    rng = stream(config.seed, "rehearsal")
    strategy = config.strategy
    state = strategy.init(world.model.initial_adapter(strategy.rank, strategy.alpha, rng))
    try:
        plans = strategy.plan(state, view, view.device_ids, rng)
    except ValueError as error:
        raise ConfigError([f"strategy: {error}"], where) from None
    planned = {plan.device_id for plan in plans}
    return tuple(device for device in view.device_ids if device not in planned)


def make_view(config: RunConfig, world: World, trainer: Trainer) -> ServerView:
    """What the server of this run knows before the first round."""
    return ServerView(
        world.fleet,
        model=world.model,
        work=LocalWork(config.local.batch_size, config.local.steps, config.local.epochs),
        cost_model=world.cost_model,
        trainer=trainer,
    )


def smallest_plans(config: RunConfig, model: ModelSpec) -> Iterator[TrainingPlan]:
    """The least that any strategy could ask, with activations as computed and packed.

    Packing saves what a block holds, and needs room of its own while it unpacks.
    """
    terms: BoolArray = np.zeros(model.grid_shape(config.strategy.rank), dtype=np.bool_)
    terms[-1, 0, 0] = True
    smallest: WeightFormat = "nf4"
    for bits in (32, 4):
        yield TrainingPlan(
            device_id=0,
            terms=TermGrid(terms, terms, np.where(terms, 2, 0).astype(np.uint8)),
            weight_formats=(smallest,) * model.num_blocks,
            activation_bits=(bits,) * model.num_blocks,
            local_steps=1,
            batch_size=config.local.batch_size,
        )
