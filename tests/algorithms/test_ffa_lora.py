"""FFA-LoRA trains, sends and averages B alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.strategies.fedlora import FedLoRA
from algorithms.strategies.ffa_lora import FFALoRA
from algorithms.strategy import ServerState
from devices.cost.closed_form import ClosedFormCost
from devices.vocabulary.plan import ClientUpdate, Factors, TrainingPlan
from devices.wire.messages import HEADER
from tests.algorithms.haflq_fleets import device, fleet_of
from tests.algorithms.static_fleet import (
    StaticFleet,
    bert,
    device_profile,
    random_adapter,
    trained_update,
)

FLEET = fleet_of([device()] * 3)


def plans_of(strategy: Any, fleet: StaticFleet = FLEET) -> list[TrainingPlan]:
    rng = np.random.default_rng(0)
    state = strategy.init(random_adapter(fleet.model, strategy.rank, rng))
    return list(strategy.plan(state, fleet, fleet.device_ids, rng))


def a_round(
    strategy: FFALoRA, examples: tuple[int, ...], seed: int = 0
) -> tuple[ServerState[None], list[ClientUpdate]]:
    rng = np.random.default_rng(seed)
    state = strategy.init(random_adapter(FLEET.model, strategy.rank, rng))
    plans = strategy.plan(state, FLEET, range(len(examples)), rng)
    updates = [
        trained_update(plan, strategy.broadcast(state, plan), rng, num_examples=n)
        for plan, n in zip(plans, examples, strict=True)
    ]
    return state, updates


def test_b_is_the_weighted_mean_and_a_is_not_touched_by_a_bit() -> None:
    strategy = FFALoRA()
    state, updates = a_round(strategy, (1, 3))
    for k, update in enumerate(updates):
        factors = {
            key: Factors(a, np.full_like(b, 4.0 * k))
            for key, (a, b) in update.adapter.factors.items()
        }
        updates[k] = replace(update, adapter=replace(update.adapter, factors=factors))
    merged = strategy.aggregate(state, updates).adapter
    for key, (a, b) in merged.factors.items():
        assert a.tobytes() == state.adapter.factors[key].a.tobytes()
        assert (b == 3.0).all()  # 1/4 * 0 + 3/4 * 4


@given(st.tuples(*[st.integers(1, 1000)] * 3), st.integers(0, 2**32 - 1))
def test_the_merged_update_is_the_weighted_sum_of_b_a(examples: tuple[int, ...], seed: int) -> None:
    """FedLoRA's mean of both factors is no such sum."""
    strategy = FFALoRA()
    state, updates = a_round(strategy, examples, seed)
    merged = strategy.aggregate(state, updates).adapter
    for key, (a, b) in merged.factors.items():
        wanted = sum(
            u.num_examples * u.adapter.factors[key].b.astype(np.float64) @ a for u in updates
        ) / sum(examples)
        got = b.astype(np.float64) @ a
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_equal_updates_average_to_themselves() -> None:
    strategy = FFALoRA()
    state, updates = a_round(strategy, (2, 3, 5))
    equal = [replace(u, adapter=updates[0].adapter) for u in updates]
    assert strategy.aggregate(state, equal).adapter.digest == updates[0].adapter.digest


def test_it_costs_half_the_bytes_of_the_terms_each_way_and_less_memory() -> None:
    """Layers are 8 x 8, adapted in query and value: A and B are alike in size."""
    model = bert(4, 8)
    profile, costs = device_profile("any"), ClosedFormCost(model, 16)
    plain = costs.cost(plans_of(FedLoRA())[0], profile)
    frozen = costs.cost(plans_of(FFALoRA(), fleet_of([device()]))[0], profile)
    terms_of_both = plans_of(FedLoRA())[0].terms
    term_bytes = 4 * model.term_parameters(terms_of_both.held)
    head_bytes = HEADER.size + 4 * model.head_parameters
    for whole, half in (
        (plain.download_bytes, frozen.download_bytes),
        (plain.upload_bytes, frozen.upload_bytes),
    ):
        assert (whole, half) == (head_bytes + term_bytes, head_bytes + term_bytes // 2)
    assert plain.memory.gradients - frozen.memory.gradients == term_bytes // 2
    assert plain.memory.optimizer - frozen.memory.optimizer == term_bytes
    assert plain.memory.adapters == frozen.memory.adapters
    assert plain.memory.activations > frozen.memory.activations
    assert plain.flops > frozen.flops


def test_depth_counts_from_the_output_and_common_is_that_of_its_own_smaller_plans() -> None:
    for plan in plans_of(FFALoRA(depth=1)):
        assert plan.depth == 1
        assert plan.terms.use == "b_only"
    assert {plan.depth for plan in plans_of(FFALoRA(depth="common"))} == {4}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"alpha": 0.0}, "alpha must be above 0 and finite, got 0.0"),
        ({"depth": 0}, "depth must be all, common or at least 1, got 0"),
        ({"depth": "half"}, "depth must be all, common or at least 1, got 'half'"),
    ],
)
def test_a_wrong_option_is_named_with_what_must_hold(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FFALoRA(**given)
