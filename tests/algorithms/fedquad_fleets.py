"""This module makes the fleets, states and rounds that FedQuad's tests share."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from algorithms.strategies.fedquad import FedQuad, FedQuadMemory
from algorithms.strategy import LinkRate, ServerState
from devices.vocabulary.plan import ClientUpdate, DeviceId, Timing, TrainingPlan
from tests.algorithms.static_fleet import (
    ClosedFormCost,
    StaticDevice,
    StaticFleet,
    bert,
    device_profile,
    random_adapter,
    trained_update,
)

State = ServerState[FedQuadMemory]
COSTS = ClosedFormCost(bert(4, 8), block_flops=1e9, activation_bytes=100_000)
WEIGHTS = 4 * 4 * sum(layer.num_weights for layer in COSTS.model.linears)
AMPLE = 10_000_000


def start(fleet: StaticFleet, strategy: FedQuad) -> State:
    return strategy.init(random_adapter(fleet.model, strategy.rank, np.random.default_rng(0)))


def plans_of(
    strategy: FedQuad, fleet: StaticFleet, state: State | None = None, seed: int = 0
) -> list[TrainingPlan]:
    state = state or start(fleet, strategy)
    return list(strategy.plan(state, fleet, fleet.device_ids, np.random.default_rng(seed)))


def depths_of(plans: Sequence[TrainingPlan]) -> dict[DeviceId, tuple[int, int]]:
    return {plan.device_id: (plan.depth, plan.num_quantized_blocks) for plan in plans}


def updates_of(
    strategy: FedQuad, fleet: StaticFleet, state: State, plans: Sequence[TrainingPlan]
) -> list[ClientUpdate]:
    """Return the updates of plans that were each carried out just as predicted."""
    rng = np.random.default_rng(state.version)
    updates = []
    for plan in plans:
        cost, link = fleet.cost(plan), fleet.link(plan.device_id)
        timing = Timing(
            cost.download_bytes / link.down_bytes_per_s,
            cost.train_s,
            cost.upload_bytes / link.up_bytes_per_s,
        )
        updates.append(
            trained_update(
                plan,
                strategy.broadcast(state, plan),
                rng,
                num_examples=fleet.num_examples(plan.device_id),
                timing=timing,
            )
        )
    return updates


def with_gains(state: State, gains: Sequence[float]) -> State:
    """Return the state with these gains, counted from the output."""
    memory = replace(state.memory, block_gains=np.array(gains[::-1], dtype=np.float64))
    return replace(state, memory=memory)


def one_device(memory_budget_bytes: int) -> StaticFleet:
    return StaticFleet(
        [StaticDevice(device_profile("one"), memory_budget_bytes, LinkRate(1e5, 1e5), 10)], COSTS
    )


@st.composite
def fleets(draw: st.DrawFn) -> StaticFleet:
    """Draw one to six devices of three speeds, some of them too small for any plan."""
    profiles = [device_profile(name, speed) for name, speed in (("a", 1e9), ("b", 4e9), ("c", 9e9))]
    device = st.builds(
        StaticDevice,
        profile=st.sampled_from(profiles),
        memory_budget_bytes=st.integers(WEIGHTS, WEIGHTS + 500_000),
        link=st.builds(LinkRate, st.floats(1e3, 1e6), st.floats(1e3, 1e6)),
        num_examples=st.integers(1, 100),
        local_steps=st.integers(1, 9),
    )
    return StaticFleet(draw(st.lists(device, min_size=1, max_size=6)), COSTS)
