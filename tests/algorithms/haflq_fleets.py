"""This module makes the fleets, states and sizes that HAFLQ's tests share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from algorithms.planning.importance import Sensitivity
from algorithms.strategies.haflq import HAFLQ
from algorithms.strategy import FleetView, LinkRate, ServerState, make_plan
from devices.cost.closed_form import ClosedFormCost
from devices.models.heads import text_head
from devices.models.spec import ModelSpec
from devices.vocabulary.plan import (
    Adapter,
    Broadcast,
    ClientUpdate,
    Factors,
    TermGrid,
    TrainingPlan,
)
from tests.algorithms.static_fleet import StaticDevice, StaticFleet, device_profile, random_adapter

RANK = 8
FAST = LinkRate(1e6, 1e6)
ROOMY = 10**9


def costs_of(num_blocks: int, hidden: int = 8) -> ClosedFormCost:
    """Return the costs of a BERT whose terms have 2 or 5 times ``hidden`` parameters, by module."""
    config = {
        "model_type": "bert",
        "num_hidden_layers": num_blocks,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_attention_heads": 1 if hidden % 2 else 2,
        "vocab_size": 100,
        "max_position_embeddings": 32,
    }
    targets = ["query", "intermediate.dense"]
    model = ModelSpec.from_config("two-widths", config, targets, head=text_head(3))
    return ClosedFormCost(model, sequence_length=16)  # tensors outweigh an unpacked matrix


def device(
    memory_bytes: int = ROOMY, link: LinkRate = FAST, flops_per_s: float = 1e9
) -> StaticDevice:
    """Return a device whose time is arithmetic alone."""
    # A profile for each speed: costs are known by the profile's name.
    profile = device_profile(f"device-{flops_per_s:g}", flops_per_s)
    profile = replace(profile, memory_bytes_per_s=1e18)
    return StaticDevice(profile, memory_bytes, link, num_examples=10, local_steps=2)


def fleet_of(
    devices: Sequence[StaticDevice],
    salience: Sequence[float] = (4.0, 1.0, 3.0, 2.0),
    *,
    hidden: int = 8,
    proximal_mu: float = 0.0,
) -> StaticFleet:
    """Return a fleet of these devices under the cost model that experiments use."""
    costs = costs_of(len(salience), hidden)
    return StaticFleet(
        devices, costs, batch_size=1, proximal_mu=proximal_mu, salience=np.array(salience)
    )


def state_of(strategy: HAFLQ, fleet: FleetView, seed: int = 0) -> ServerState[Sensitivity]:
    return strategy.init(random_adapter(fleet.model, strategy.rank, np.random.default_rng(seed)))


def plans_of(strategy: HAFLQ, fleet: FleetView, seed: int = 0) -> dict[int, TrainingPlan]:
    """Return the first-round plans of the whole fleet by device id."""
    state = state_of(strategy, fleet)
    plans = strategy.plan(state, fleet, fleet.device_ids, np.random.default_rng(seed))
    return {plan.device_id: plan for plan in plans}


def peak_bytes(fleet: FleetView, formats: Sequence[Any], num_terms: int) -> int:
    """Return the peak of a plan that trains ``num_terms`` terms in every module and holds all."""
    shape = fleet.model.grid_shape(RANK)
    trained = np.broadcast_to(np.arange(RANK) < num_terms, shape)
    terms = TermGrid(np.ones(shape, bool), trained, np.zeros(shape, np.uint8))
    return fleet.cost(make_plan(fleet, fleet.device_ids[0], terms, tuple(formats))).memory.total


def upload_bits(fleet: FleetView, bits: int) -> int:
    """Return the bits on the wire of the head and every term, with each term at ``bits`` bits."""
    terms = TermGrid.top_blocks(fleet.model.grid_shape(RANK), fleet.model.num_blocks, bits)
    return 8 * fleet.cost(make_plan(fleet, fleet.device_ids[0], terms)).upload_bytes


def after_one_round(fleet: FleetView, strength: np.ndarray) -> ServerState[Sensitivity]:
    """Return the state after one device trained all from ones, moving term k by ``strength[k]``
    (R,)."""
    strategy = HAFLQ(term_budgets=(RANK,), upload_s=1e9)
    state = state_of(strategy, fleet)
    start = with_terms(state.adapter, np.ones(RANK))
    state = strategy.init(start)
    (plan,) = strategy.plan(state, fleet, [0], np.random.default_rng(0))
    end = with_terms(start, 1 + strength)
    return strategy.aggregate(state, [ClientUpdate(plan, Broadcast(0, start), end, 10, 0.0)])


def with_terms(adapter: Adapter, values: np.ndarray) -> Adapter:
    """Return the adapter with every element of term k set to ``values[k]`` (R,)."""
    factors = {
        key: Factors(
            np.full_like(a, values[:, None], dtype=np.float32),
            np.full_like(b, values, dtype=np.float32),
        )
        for key, (a, b) in adapter.factors.items()
    }
    return replace(adapter, factors=factors)
