"""SCAFFOLD: control variates correct the drift of each device's steps toward its own data.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh: "SCAFFOLD: Stochastic Controlled Averaging for
Federated Learning", ICML 2020, arXiv 1910.06378, Algorithm 1 with option II.

Who trains:         the whole cohort.
What they train:    every rank-1 term of the top ``depth`` blocks, and the head; c - c_k is added
                    to the gradient of each step.
How it is merged:   the plain mean of A, of B and of the head; c moves by the sum of the changes of
                    c_k over the number of devices.

    c_k+ = c_k - c + (x - y_k) / (K eta)        from x to y_k in K steps of rate eta
    c   <- c + (1 / N) sum over the cohort of (c_k+ - c_k)

From the paper: all of the above, for SGD without momentum; its server's rate is that of
``server_optimizer``, 1 without one. Ours: factors and head as the parameters, ``depth`` as in
``fedlora``, and late updates, whose c_k+ counts in full however old it is, so that c stays the mean
of all c_k. A device that is asked again before its update is merged trains with the c_k of before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from algorithms.merging.lora import holder_weights, mean_adapter
from algorithms.planning.compact_models import counted_alike
from algorithms.strategies.fedlora import Depth, depth_on
from algorithms.strategy import FleetView, ServerState, Strategy, make_plans
from devices.vocabulary.controls import elementwise, zeros_like
from devices.vocabulary.plan import (
    Adapter,
    Broadcast,
    ClientUpdate,
    Controls,
    DeviceId,
    TermGrid,
    TrainingPlan,
)
from traces.options import Count, Positive


@dataclass(frozen=True, eq=False)
class Variates:
    """The variates are the server's c, and c_k of each device that has taken part; others are 0."""

    zero: Adapter
    everybody: Adapter
    own: Mapping[DeviceId, Adapter] = field(default_factory=dict)

    def of(self, device_id: DeviceId) -> Adapter:
        """Return the control variate of one device, c_k."""
        return self.own.get(device_id, self.zero)

    def after(self, updates: Sequence[ClientUpdate], num_devices: int) -> Variates:
        """Return the variates with those that devices have after their updates."""
        everybody, own = self.everybody, dict(self.own)
        for update in updates:
            if update.control is None:  # a run in timing only trains nothing
                continue
            device_id = update.plan.device_id
            before = own.get(device_id, self.zero)
            own[device_id] = update.control
            share = 1 / max(num_devices, len(own))
            everybody = elementwise(
                lambda c, new, old, share=share: c + share * (new - old),
                everybody,
                update.control,
                before,
            )
        return Variates(self.zero, everybody, own)


@dataclass(frozen=True)
class SCAFFOLD(Strategy[Variates]):
    """SCAFFOLD gives every device the same plan, and corrects its gradients by c - c_k."""

    kind: ClassVar[str] = "scaffold"
    title: ClassVar[str] = "SCAFFOLD: control variates against drift, mean of A and of B"
    draws: ClassVar[bool] = False
    is_mean: ClassVar[bool] = True
    needs_plain_sgd: ClassVar[bool] = True

    rank: Count = 8
    alpha: Positive = 16.0
    depth: Depth = "all"
    """Trained blocks from the output: all, the most that every device can hold, or a number."""

    def init(self, adapter: Adapter) -> ServerState[Variates]:
        """Return a state in which every control variate is zero."""
        zero = zeros_like(adapter)
        return ServerState(0, adapter, Variates(zero, zero))

    def plan(
        self,
        state: ServerState[Variates],
        fleet: FleetView,
        cohort: Sequence[DeviceId],
        rng: np.random.Generator,
    ) -> Sequence[TrainingPlan]:
        depth = depth_on(fleet, self.depth, rank=self.rank, use="controlled")
        shape = fleet.model.grid_shape(self.rank)
        return make_plans(
            fleet, cohort, replace(TermGrid.top_blocks(shape, depth), use="controlled")
        )

    def broadcast(self, state: ServerState[Variates], plan: TrainingPlan) -> Broadcast:
        """Return the global adapter and c, beside the c_k that the device has kept."""
        variates = state.memory
        controls = Controls(variates.everybody, variates.of(plan.device_id))
        return Broadcast(state.version, state.adapter, controls=controls)

    def aggregate(
        self, state: ServerState[Variates], updates: Sequence[ClientUpdate]
    ) -> ServerState[Variates]:
        alike = counted_alike(updates)
        mean = mean_adapter(state.adapter, alike, holder_weights(alike))
        return state.advance(mean, state.memory.after(updates, state.num_devices))
