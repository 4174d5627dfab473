"""Fleets that several strategies are tested on; ``static_fleet.py`` holds what they are made of."""

from __future__ import annotations

import pytest

from algorithms.strategy import LinkRate
from tests.algorithms.haflq_fleets import ROOMY, device, fleet_of, peak_bytes
from tests.algorithms.static_fleet import (
    ClosedFormCost,
    StaticDevice,
    StaticFleet,
    bert,
    device_profile,
)


@pytest.fixture(scope="session")
def costs() -> ClosedFormCost:
    """Return the costs of four blocks of width 8, each 1 s forward at 1 GFLOP/s with 100 kB
    saved."""
    return ClosedFormCost(bert(4, 8), block_flops=1e9, activation_bytes=100_000)


@pytest.fixture(scope="session")
def fleet(costs: ClosedFormCost) -> StaticFleet:
    """Return three devices, slow to fast, with room for 1, 2 and 4 blocks beyond the weights."""
    weights = 4 * sum(layer.num_weights for layer in costs.model.linears) * costs.model.num_blocks
    adapters = 100_000  # every held and trained term of rank 8 or less, and the head
    devices = {
        device_id: StaticDevice(
            profile=device_profile(name, flops_per_s),
            memory_budget_bytes=weights + adapters + num_blocks * 100_000,
            link=LinkRate(1e6, 1e5),
            num_examples=num_examples,
            local_steps=2,
        )
        for device_id, name, flops_per_s, num_blocks, num_examples in (
            (2, "slow", 1e9, 1, 30),
            (5, "middle", 3e9, 2, 50),
            (7, "fast", 1e10, 4, 20),
        )
    }
    return StaticFleet(devices, costs)


@pytest.fixture(scope="module")
def mixed() -> StaticFleet:
    """The fleet ranges from a device that holds everything unpacked to one that holds it at 4 bits
    only. Layers are 8 x 8 and 32 x 8, so at rank 8 no dimension tells a factor's axes apart."""
    roomy = fleet_of([device()])
    budgets = (ROOMY, ROOMY, *(peak_bytes(roomy, (f,) * 4, 8) for f in ("fp32", "int8", "int4")))
    speeds = (4e9, 1e9, 1e9, 5e8, 1e8)
    return fleet_of(
        [
            device(memory, LinkRate(1e6, 1e4 * (k + 1)), flops)
            for k, (memory, flops) in enumerate(zip(budgets, speeds, strict=True))
        ]
    )
