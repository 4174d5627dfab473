"""What a scheduler is: four pure functions of its state and of what a server can know."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Generic, NamedTuple, Protocol, TypeVar, cast

import numpy as np

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

M = TypeVar("M")


@dataclass(frozen=True, eq=False)
class ServerState(Generic[M]):
    """Everything that the server remembers from one aggregation to the next."""

    version: int  # aggregations so far
    adapter: Adapter  # the global model; the next broadcast is cut from it
    memory: M  # what this strategy alone remembers

    def advance(self, adapter: Adapter, memory: M) -> ServerState[M]:
        """The state after one aggregation."""
        return replace(self, version=self.version + 1, adapter=adapter, memory=memory)


class LinkRate(NamedTuple):
    """A device's last measured rates."""

    down_bytes_per_s: float
    up_bytes_per_s: float


class FleetView(Protocol):
    """What a server can know of its devices: no trace and no future event."""

    @property
    def model(self) -> ModelSpec: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def proximal_mu(self) -> float:
        """What ``make_plan`` gives every plan: FedProx under any strategy."""
        ...

    @property
    def device_ids(self) -> Sequence[DeviceId]:
        """Every device of the fleet, in rising order."""
        ...

    def profile(self, device_id: DeviceId) -> DeviceProfile: ...

    def memory_budget_bytes(self, device_id: DeviceId) -> int: ...

    def num_examples(self, device_id: DeviceId) -> int: ...

    def local_steps(self, device_id: DeviceId) -> int: ...

    def link(self, device_id: DeviceId) -> LinkRate: ...

    def cost(self, plan: TrainingPlan) -> Cost: ...

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        """(L,): measured once on the server's copy of the model."""
        ...


def round_trip_s(fleet: FleetView, plan: TrainingPlan) -> float:
    """Seconds from sending the plan to receiving its update, at the last measured link rates."""
    cost, link = fleet.cost(plan), fleet.link(plan.device_id)
    return (
        cost.download_bytes / link.down_bytes_per_s
        + cost.train_s
        + cost.upload_bytes / link.up_bytes_per_s
    )


def make_plan(
    fleet: FleetView,
    device_id: DeviceId,
    terms: TermGrid,
    weight_formats: tuple[BlockFormat, ...] | None = None,
    activation_bits: tuple[int, ...] | None = None,
) -> TrainingPlan:
    """A plan with the experiment's local work, and fp32 wherever nothing is given."""
    blocks = fleet.model.num_blocks
    unpacked: WeightFormat = "fp32"
    return TrainingPlan(
        device_id=device_id,
        terms=terms,
        weight_formats=weight_formats or (unpacked,) * blocks,
        activation_bits=activation_bits or (32,) * blocks,
        local_steps=fleet.local_steps(device_id),
        batch_size=fleet.batch_size,
        proximal_mu=fleet.proximal_mu,
    )


def make_plans(
    fleet: FleetView,
    device_ids: Sequence[DeviceId],
    terms: TermGrid,
    *,
    activation_bits: tuple[int, ...] | None = None,
) -> list[TrainingPlan]:
    """``make_plan`` of each device: one plan is made for all that train as many steps."""
    made: dict[int, TrainingPlan] = {}
    plans = []
    for device_id in device_ids:
        steps = fleet.local_steps(device_id)
        if steps not in made:
            made[steps] = make_plan(fleet, device_id, terms, activation_bits=activation_bits)
        plans.append(made[steps].on(device_id))
    return plans


class Strategy(Protocol[M]):
    """A scheduler: who trains what, and how updates are merged.

    A strategy is a frozen dataclass of its options with four pure methods, which it may inherit
    from here where their bodies suit it. L is the number of blocks, M of adapted modules in a block
    and R of rank-1 terms of a module; ``rank`` is the R and ``alpha`` / ``rank`` the scale of the
    global adapter. What it remembers from one aggregation to the next stands in
    ``ServerState.memory``, never in the object: an equal call gets an equal answer. It sees no
    clock, no trace and no future. ``algorithms.checks.check_strategy`` tries every clause below.

    The simulation guarantees that ``init`` is called once, before anything else; that a cohort
    rises and holds each device once; that ``broadcast`` is called for plans of this strategy at the
    state they were made at; and that updates are in rising order of device. It stops with an error
    in words where a strategy breaks a clause.
    """

    kind: ClassVar[str]  # what a config calls it
    title: ClassVar[str]  # one line for lists
    rank: int
    alpha: float

    def init(self, adapter: Adapter) -> ServerState[M]:
        """Return the state of version 0 that starts from ``adapter``.

        ``adapter`` has factors A (R, in) and B (out, R), float32, for each block and module, B all
        zero. The default has no memory: ``ServerState(0, adapter, None)``.
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
        """Return at most one plan for each device of ``cohort``, and none for any other.

        A device without a plan sits the round out. Terms are (L, M, R). ``make_plan`` gives a plan
        the experiment's local work, which it must keep. A plan that needs more bytes than its
        device's budget is handed out all the same and ends in an out-of-memory event. All
        randomness comes from ``rng``. A ValueError says, in words, why the options do not suit the
        fleet; it ends the run before anything is written.
        """
        ...

    def broadcast(self, state: ServerState[M], plan: TrainingPlan) -> Broadcast:
        """Return what the device of ``plan`` starts from, at ``state.version``.

        Factors and head keep the shapes of the global adapter. The device downloads the terms that
        its plan holds; the default sends the global adapter.
        """
        return Broadcast(state.version, state.adapter)

    @abstractmethod
    def aggregate(self, state: ServerState[M], updates: Sequence[ClientUpdate]) -> ServerState[M]:
        """Return ``state.advance(adapter, memory)`` with the updates merged.

        ``updates`` is not empty and in rising order of device; a device may be missing that has
        failed, and an update may have started from an older version, brought up to date by the
        pacing. Terms that ``plan.terms.uploaded`` does not name were not sent: they stand in the
        update as they were broadcast, and must reach nothing. Names, shapes, the scale and float32
        stay, every number is finite, and each update has its part in the result.
        """
        ...
