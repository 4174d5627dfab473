"""Defines a scheduler: four pure functions of its state and of what a server can know."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import ClassVar, Generic, NamedTuple, NoReturn, Protocol, TypeVar, cast

import numpy as np

from devices.cost.memory import FORMAT_BITS
from devices.cost.model import Cost
from devices.fleet.profile import DeviceProfile
from devices.models.spec import ModelSpec
from devices.vocabulary.plan import (
    Adapter,
    BlockFormat,
    Broadcast,
    ClientUpdate,
    DeviceId,
    TermGrid,
    TrainingPlan,
    WeightFormat,
)
from devices.vocabulary.trainer import SalienceMetric
from traces.arrays import FloatArray
from traces.options import Options

M = TypeVar("M")


class StrategyError(ValueError):
    """This error says that a user's strategy cannot work; the message is for its author."""


class _NoStream:
    """This stands for the random stream of a strategy that says that it draws nothing."""

    def __getattr__(self, name: str) -> NoReturn:
        raise StrategyError(f"a strategy whose draws is False must draw nothing, got rng.{name}")


NO_STREAM = cast(np.random.Generator, _NoStream())


@dataclass(frozen=True, eq=False)
class ServerState(Generic[M]):
    """A server state is everything that is remembered from one aggregation to the next.

    ``version`` counts aggregations, ``adapter`` is the global model, and ``memory`` is what this
    strategy alone remembers, as data that can be pickled. ``num_devices`` is the size of the fleet,
    which the engine fills in after ``init``. A state is never changed in place.
    """

    version: int
    adapter: Adapter
    memory: M
    num_devices: int = 0

    def advance(self, adapter: Adapter, memory: M) -> ServerState[M]:
        """Return the state of the next version, with this adapter and memory."""
        return ServerState(self.version + 1, adapter, memory, self.num_devices)

    @cached_property
    def broadcast(self) -> Broadcast:
        """Return the global adapter as it is sent to every device."""
        return Broadcast(self.version, self.adapter)


class LinkRate(NamedTuple):
    """A link rate is what was last measured of a device's link, in bytes a second."""

    down_bytes_per_s: float
    up_bytes_per_s: float


class FleetView(Protocol):
    """A fleet view is what a server can know of its devices: no trace and no future event.

    Every method takes the id of a device of the fleet and raises KeyError or IndexError for
    another. Answers hold for the instant of the call and do not change while a strategy plans.
    """

    @property
    def model(self) -> ModelSpec:
        """Return the model's sizes: ``num_blocks`` (L), ``targets`` (M), ``grid_shape(rank)``."""
        ...

    @property
    def batch_size(self) -> int:
        """Return the number of examples in a batch of the local training."""
        ...

    @property
    def proximal_mu(self) -> float:
        """Return the weight of FedProx's term, which ``make_plan`` gives every plan; 0 is none."""
        ...

    @property
    def micro_batch(self) -> int | None:
        """Return the examples of a micro-batch, which ``make_plan`` gives every plan.

        None means that a batch is not divided.
        """
        ...

    @property
    def weight_format(self) -> WeightFormat:
        """Return the widest format of frozen weights, to which ``make_plan`` narrows wider ones."""
        ...

    @property
    def upload_bits(self) -> int:
        """Return the most bits of an uploaded number of a term, to which ``make_plan`` keeps."""
        ...

    @property
    def head_bits(self) -> int:
        """Return the bits of an uploaded number of the head, the same in every plan."""
        ...

    @property
    def device_ids(self) -> Sequence[DeviceId]:
        """Return every device of the fleet, in rising order."""
        ...

    def profile(self, device_id: DeviceId) -> DeviceProfile:
        """Return the kind of the device: its speed in FLOP/s, memory in bytes and power in W."""
        ...

    def memory_budget_bytes(self, device_id: DeviceId) -> int:
        """Return the bytes that training may take on the device."""
        ...

    def num_examples(self, device_id: DeviceId) -> int:
        """Return the number of examples that the device holds."""
        ...

    def local_steps(self, device_id: DeviceId) -> int:
        """Return the number of training steps that the experiment asks of the device in a round."""
        ...

    def link(self, device_id: DeviceId) -> LinkRate:
        """Return the rates of the device's last transfers, or what is assumed before the first."""
        ...

    def cost(self, plan: TrainingPlan) -> Cost:
        """Return bytes, FLOPs, memory and training seconds of a plan on its own device."""
        ...

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        """Return (L,) saliences of the blocks, measured once on the server's copy of the model."""
        ...

    def block_fisher(self, adapter: Adapter) -> FloatArray:
        """Return (L,): the Fisher information of an adapter's factors, on texts of the server."""
        ...


def round_trip_s(fleet: FleetView, plan: TrainingPlan) -> float:
    """Return the seconds from sending the plan to receiving its update, at the last rates."""
    cost, link = fleet.cost(plan), fleet.link(plan.device_id)
    return (
        cost.download_bytes / link.down_bytes_per_s
        + cost.train_s
        + cost.upload_bytes / link.up_bytes_per_s
    )


def fits(fleet: FleetView, plan: TrainingPlan) -> bool:
    """Return whether training by the plan takes no more memory than its device has for it."""
    return fleet.cost(plan).memory.total <= fleet.memory_budget_bytes(plan.device_id)


def make_plan(
    fleet: FleetView,
    device_id: DeviceId,
    terms: TermGrid,
    weight_formats: tuple[BlockFormat, ...] | None = None,
    activation_bits: tuple[int, ...] | None = None,
) -> TrainingPlan:
    """Return a plan with the experiment's local work.

    Frozen weights have the fleet's format wherever none is given or a wider one is; uploads have at
    most the fleet's bits.
    """
    work = _LocalWork.of(fleet, fleet.local_steps(device_id))
    return _plan(device_id, terms, weight_formats, activation_bits, work)


class _LocalWork(NamedTuple):
    """The local work is what an experiment asks of each plan of a device."""

    num_blocks: int
    weight_format: WeightFormat
    upload_bits: int
    head_bits: int
    local_steps: int
    batch_size: int
    proximal_mu: float
    micro_batch: int | None

    @classmethod
    def of(cls, fleet: FleetView, local_steps: int) -> _LocalWork:
        """Return the local work of a device that makes so many steps."""
        return cls(
            fleet.model.num_blocks,
            fleet.weight_format,
            fleet.upload_bits,
            fleet.head_bits,
            local_steps,
            fleet.batch_size,
            fleet.proximal_mu,
            fleet.micro_batch,
        )


def _plan(
    device_id: DeviceId,
    terms: TermGrid,
    weight_formats: tuple[BlockFormat, ...] | None,
    activation_bits: tuple[int, ...] | None,
    work: _LocalWork,
) -> TrainingPlan:
    widest = work.weight_format
    formats = weight_formats or (widest,) * work.num_blocks
    if widest != "fp32":
        most = FORMAT_BITS[widest]
        formats = tuple(widest if FORMAT_BITS[name] > most else name for name in formats)
    if work.upload_bits < 32:
        terms = replace(terms, upload_bits=np.minimum(terms.upload_bits, work.upload_bits))
    if work.head_bits < 32:
        terms = replace(terms, head_bits=work.head_bits)
    return TrainingPlan(
        device_id=device_id,
        terms=terms,
        weight_formats=formats,
        activation_bits=activation_bits or (32,) * work.num_blocks,
        local_steps=work.local_steps,
        batch_size=work.batch_size,
        proximal_mu=work.proximal_mu,
        micro_batch=work.micro_batch,
    )


@lru_cache(maxsize=64)
def _shared_plan(
    terms: TermGrid, activation_bits: tuple[int, ...] | None, work: _LocalWork
) -> TrainingPlan:
    """Return the plan of this work for device 0, from a cache.

    An asynchronous pacing asks for one device at a time, and a strategy often answers with the same
    grid. So the checks and the costs of its plan are computed once.
    """
    return _plan(0, terms, None, activation_bits, work)


def make_plans(
    fleet: FleetView,
    device_ids: Sequence[DeviceId],
    terms: TermGrid,
    *,
    activation_bits: tuple[int, ...] | None = None,
) -> list[TrainingPlan]:
    """Return ``make_plan`` of each device; devices with equal local steps share one plan's work."""
    # A grid that can be written to may have other content at the next call, so it is not cached.
    make = _shared_plan if terms.is_read_only else _shared_plan.__wrapped__
    made: dict[int, TrainingPlan] = {}
    plans = []
    for device_id in device_ids:
        steps = fleet.local_steps(device_id)
        if steps not in made:
            made[steps] = make(terms, activation_bits, _LocalWork.of(fleet, steps))
        plans.append(made[steps].on(device_id))
    return plans


class Strategy(Options, Protocol[M]):
    """A strategy is a frozen dataclass of its options, with four pure methods.

    ``init`` starts a run; then each round asks ``plan`` for the work of a cohort, ``broadcast`` for
    what each device starts from, and ``aggregate`` for the next global model. All four are
    functions of their arguments: same arguments, same result. They change none of them, keep
    nothing in the object or the module, and draw random numbers from ``rng`` alone. What a strategy
    has to remember goes into ``ServerState.memory``, of a type M of its own (None where there is
    nothing to remember).

    ``rank`` (R) and ``alpha`` fix the global adapter, whose factors are A (R, in) and B (out, R),
    scaled by alpha / R. A ValueError that ``__post_init__`` raises is shown as the config's error.
    L is the number of blocks, M that of adapted modules in a block.
    """

    kind: ClassVar[str]
    """The name in a config."""
    title: ClassVar[str]
    """One line for lists and legends."""
    is_mean: ClassVar[bool] = False
    """Whether the aggregation is a mean of what devices sent, term by term, so that what it adds to
    the model is a gradient that a server optimizer can step along."""
    has_global_model: ClassVar[bool] = True
    """Whether ``ServerState.adapter`` is a model that somebody uses. Where it is not, it stays what
    it was, nothing is tested between rounds or exported, and only own models count."""
    is_centralized: ClassVar[bool] = False
    """Whether it is no federation: the engine gives it one place that holds all data, has no link
    and no limit of memory, and makes the steps of a whole round."""
    is_reference: ClassVar[bool] = False
    """Whether it stands beside the schedulers of a table and is none of them: it chooses no target
    or equal spending, is never marked as the best, and is the baseline only where it is named."""
    draws: ClassVar[bool] = True
    """Whether ``plan`` draws random numbers. One that says that it does not is given ``NO_STREAM``,
    which refuses to draw, and spares the engine a stream for each time that it asks. A class that
    has a ``plan`` of its own says so for itself."""
    needs_plain_sgd: ClassVar[bool] = False
    """Whether it takes what a device has moved by, over the rate, for the sum of its gradients,
    which holds for SGD without momentum and clipping. A config with another recipe is refused."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "plan" in vars(cls):
            cls.draws = vars(cls).get("draws", True)

    @property
    def rank(self) -> int:
        """The number R of rank-1 terms of every module of the global adapter, at least 1."""
        ...

    @property
    def alpha(self) -> float:
        """The LoRA scale times R, a finite number above 0."""
        ...

    def init(self, adapter: Adapter) -> ServerState[M]:
        """Return the state before the first round: version 0, and what is remembered at the start.

        ``adapter`` has rank R; its B is zero, and its head is the same under every strategy. The
        default remembers nothing.
        """
        return ServerState(0, adapter, cast(M, None))

    @abstractmethod
    def plan(
        self,
        state: ServerState[M],
        fleet: FleetView,
        cohort: Sequence[DeviceId],
        rng: np.random.Generator,
    ) -> Sequence[TrainingPlan]:
        """Return at most one plan for each device of the cohort; one without a plan sits out.

        The ids of ``cohort`` rise. A plan's term grid has the shape ``fleet.model.grid_shape(R)``,
        (L, M, R), and ``make_plan`` gives it the experiment's local work. A plan whose
        ``fleet.cost(plan).memory.total`` is above ``fleet.memory_budget_bytes(device_id)`` runs out
        of memory on the device, and its round is lost. Also called with one device whose memory has
        shrunk. A ValueError says that this fleet cannot be planned for.
        """
        ...

    def broadcast(self, state: ServerState[M], plan: TrainingPlan) -> Broadcast:
        """Return what the device of this plan starts from, at the version of the state.

        Its adapter has the names, shapes and float32 arrays of the global one; only terms that the
        plan holds are sent. The default is the global adapter.
        """
        return state.broadcast

    def own_model(self, state: ServerState[M], device_id: DeviceId) -> Adapter:
        """Return the model that a device uses: the global one, unless it has one of its own.

        It is what the device's own test data are put to, at the end of a run.
        """
        return state.adapter

    @abstractmethod
    def aggregate(self, state: ServerState[M], updates: Sequence[ClientUpdate]) -> ServerState[M]:
        """Return ``state.advance(adapter, memory)`` with what the updates taught.

        ``updates`` are not empty and in order of device, then of version: any part of the devices
        that had plans, possibly of older versions (brought up to date by the engine where a pacing
        allows that), and their ``num_examples`` are above 0 in sum. Only terms that an update's
        plan uploads have been trained; the others stand as they were broadcast, and must change
        nothing. What a plan keeps on its device is in ``update.own``. The adapter keeps
        names, shapes, scale and float32, and is finite.
        """
        ...
