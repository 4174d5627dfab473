from typing import Any

import numpy as np
import pytest

from algorithms.strategies.fedlora import FedLoRA, common_depth
from algorithms.strategy import LinkRate, ServerState, make_plan
from devices.vocabulary.plan import TermGrid, TrainingPlan
from tests.algorithms.static_fleet import (
    ClosedFormCost,
    StaticDevice,
    StaticFleet,
    bert,
    device_profile,
    trained_update,
)


def start(fleet: StaticFleet, strategy: FedLoRA) -> ServerState[None]:
    rng = np.random.default_rng(0)
    return strategy.init(fleet.model.initial_adapter(strategy.rank, strategy.alpha, rng))


def plans_of(strategy: FedLoRA, fleet: StaticFleet) -> list[TrainingPlan]:
    rng = np.random.default_rng(0)
    return list(strategy.plan(start(fleet, strategy), fleet, fleet.device_ids, rng))


def test_depth_all_trains_every_term_even_where_it_does_not_fit(fleet: StaticFleet) -> None:
    plans = plans_of(FedLoRA(), fleet)
    assert [plan.device_id for plan in plans] == [2, 5, 7]
    for plan in plans:
        assert plan.terms.uploaded.all()
        assert set(plan.weight_formats) == {"fp32"}
        assert set(plan.activation_bits) == {32}
        assert plan.local_steps == fleet.local_steps(plan.device_id)
    over = [fleet.cost(p).memory.total > fleet.memory_budget_bytes(p.device_id) for p in plans]
    assert over == [True, True, False]


def test_fixed_depth_freezes_the_blocks_below(fleet: StaticFleet) -> None:
    for plan in plans_of(FedLoRA(depth=3), fleet):
        assert plan.depth == 3
        assert plan.terms.held.all()
        assert not plan.terms.trained[0].any()


def test_common_depth_is_the_deepest_that_the_weakest_device_holds(costs: ClosedFormCost) -> None:
    shape = costs.model.grid_shape(8)
    for expected in (1, 2, 3, 4):
        profile = device_profile("any")
        plan = TrainingPlan(
            0, TermGrid.top_blocks(shape, expected), ("fp32",) * 4, (32,) * 4, 1, 16
        )
        just_enough = costs.cost(plan, profile).memory.total
        link = LinkRate(1e6, 1e6)
        fleet = StaticFleet(
            [
                StaticDevice(profile, 10 * just_enough, link, 10),
                StaticDevice(profile, just_enough, link, 10),
                StaticDevice(device_profile("other"), 10 * just_enough, link, 10),
            ],
            costs,
        )
        assert common_depth(fleet, rank=8) == expected
        assert {plan.depth for plan in plans_of(FedLoRA(depth="common"), fleet)} == {expected}


def test_checkpointing_fits_all_blocks_where_keeping_activations_does_not() -> None:
    costs = ClosedFormCost(bert(4, 8), block_flops=1e9, activation_bytes=100_000)
    profile = device_profile("any")
    terms = TermGrid.top_blocks(costs.model.grid_shape(8), 4)
    plan = TrainingPlan(0, terms, ("fp32",) * 4, (0,) * 4, 1, 16)
    budget = costs.cost(plan, profile).memory.total
    fleet = StaticFleet([StaticDevice(profile, budget, LinkRate(1e6, 1e6), 10)], costs)
    depths = {}
    for bits in (32, 0):
        (made,) = plans_of(FedLoRA(depth="common", activation_bits=bits), fleet)
        assert set(made.activation_bits) == {bits}
        depths[bits] = made.depth
    assert depths == {32: 1, 0: 4}


def test_activation_bits_that_nothing_can_hold_are_refused() -> None:
    message = "activation_bits must be one of 32, 8, 4, 0, got 2"
    with pytest.raises(ValueError, match=message):
        FedLoRA(activation_bits=2)  # type: ignore[arg-type]


def test_common_depth_follows_the_whole_fleet_and_not_the_cohort(fleet: StaticFleet) -> None:
    strategy = FedLoRA(depth="common")
    state = start(fleet, strategy)
    (plan,) = strategy.plan(state, fleet, [7], np.random.default_rng(0))
    assert plan.depth == 1
    assert fleet.cost(plan.on(2)).memory.total <= fleet.memory_budget_bytes(2)


def test_common_depth_names_a_device_that_cannot_hold_one_block(costs: ClosedFormCost) -> None:
    device = StaticDevice(device_profile("tiny"), 1000, LinkRate(1, 1), 1)
    fleet = StaticFleet({3: device}, costs)
    needed = fleet.cost(make_plan(fleet, 3, TermGrid.top_blocks((4, 2, 8), 1))).memory.total
    message = f"one trained block, {needed} bytes; device 3 \\(tiny\\) may use 1000"
    with pytest.raises(ValueError, match=message):
        common_depth(fleet, rank=8)


def test_depth_beyond_the_model_is_refused(fleet: StaticFleet) -> None:
    with pytest.raises(ValueError, match=r"depth must be in \[1, 4\], got 5 \(model test-bert\)"):
        plans_of(FedLoRA(depth=5), fleet)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"alpha": 0.0}, "alpha must be above 0 and finite, got 0"),
        ({"depth": 0}, "depth must be all, common or at least 1, got 0"),
        ({"depth": "half"}, "depth must be all, common or at least 1, got 'half'"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FedLoRA(**options)


def test_aggregate_is_the_example_weighted_mean_of_a_and_of_b(fleet: StaticFleet) -> None:
    strategy = FedLoRA(rank=3)
    state = start(fleet, strategy)
    rng = np.random.default_rng(1)
    updates = [
        trained_update(plan, strategy.broadcast(state, plan), rng, num_examples=n)
        for plan, n in zip(plans_of(strategy, fleet), (1, 2, 5), strict=True)
    ]
    after = strategy.aggregate(state, updates)
    assert after.version == state.version + 1
    for key, factors in after.adapter.factors.items():
        for side in (0, 1):
            sent = [np.float64(update.adapter.factors[key][side]) for update in updates]
            mean = (1 * sent[0] + 2 * sent[1] + 5 * sent[2]) / 8
            np.testing.assert_allclose(factors[side], mean, rtol=1e-6, atol=1e-7)
    backwards = strategy.aggregate(state, updates[::-1])
    assert backwards.adapter.digest == after.adapter.digest
