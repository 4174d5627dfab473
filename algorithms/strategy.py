"""What a scheduler is: four pure functions of its state and of what a server can know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Generic, NamedTuple, Protocol, TypeVar

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
    """A frozen dataclass of its hyper-parameters, with four pure methods.

    ``rank`` and ``alpha`` fix the global adapter. A device of the cohort for which ``plan`` returns
    nothing sits the round out.
    """

    kind: ClassVar[str]
    title: ClassVar[str]

    @property
    def rank(self) -> int: ...

    @property
    def alpha(self) -> float: ...

    def init(self, adapter: Adapter) -> ServerState[M]: ...

    def plan(
        self,
        state: ServerState[M],
        fleet: FleetView,
        cohort: Sequence[DeviceId],
        rng: np.random.Generator,
    ) -> Sequence[TrainingPlan]: ...

    def broadcast(self, state: ServerState[M], plan: TrainingPlan) -> Broadcast: ...

    def aggregate(
        self, state: ServerState[M], updates: Sequence[ClientUpdate]
    ) -> ServerState[M]: ...
