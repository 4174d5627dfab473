"""HAFLQ chooses the terms to train, keeps every plan to its limits and merges the updates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.strategies.haflq import HAFLQ
from algorithms.strategy import LinkRate
from devices.vocabulary.plan import (
    Adapter,
    Broadcast,
    ClientUpdate,
    Factors,
    ModuleKey,
    TermGrid,
    TrainingPlan,
)
from tests.algorithms.haflq_fleets import (
    RANK,
    after_one_round,
    device,
    fleet_of,
    plans_of,
    state_of,
    upload_bits,
)
from tests.algorithms.static_fleet import random_adapter, trained_update


def test_freezing_holds_all_terms_and_trains_the_budget() -> None:
    terms = plans_of(HAFLQ(term_budgets=(3,)), fleet_of([device()]))[0].terms
    assert terms.held.all()
    assert (terms.trained.sum(axis=2) == 3).all()


def test_truncation_holds_what_it_trains_at_the_server_s_indices() -> None:
    strategy = HAFLQ(mode="truncation", term_budgets=(3,), explore_share=0.0)
    fleet = fleet_of([device()])
    state = after_one_round(fleet, np.array([0, 9, 0, 0, 1, 0, 0, 2]))
    (plan,) = strategy.plan(state, fleet, [0], np.random.default_rng(0))
    assert np.array_equal(plan.terms.held, plan.terms.trained)
    assert (plan.terms.held == [False, True, False, False, True, False, False, True]).all()


def test_a_device_x_times_slower_than_the_median_trains_one_xth_of_the_terms() -> None:
    speeds = (4e9, 1e9, 1e9 / 1.9, 1e9 / 2.1, 1e9, 1e9, 1e9 / 100)
    plans = plans_of(HAFLQ(), fleet_of([device(flops_per_s=s) for s in speeds]))
    num_terms = [int(plan.terms.trained[0, 0].sum()) for plan in plans.values()]
    assert num_terms == [8, 8, 4, 2, 8, 8, 2]


def test_groups_give_the_fastest_third_the_largest_budget() -> None:
    speeds = (1e9, 6e9, 3e9, 2e9, 5e9, 4e9)
    plans = plans_of(HAFLQ(term_rule="groups"), fleet_of([device(flops_per_s=s) for s in speeds]))
    num_terms = [int(plan.terms.trained[0, 0].sum()) for plan in plans.values()]
    assert num_terms == [2, 8, 4, 2, 8, 4]


def test_a_budget_above_the_rank_means_the_rank() -> None:
    strategy = HAFLQ(rank=4, term_budgets=(2, 4, 16))
    plans = plans_of(strategy, fleet_of([device(), device(), device(flops_per_s=1e9 / 2.1)]))
    assert [int(plan.terms.trained[0, 0].sum()) for plan in plans.values()] == [4, 4, 2]


def test_the_first_round_trains_other_terms_on_every_device() -> None:
    plans = plans_of(HAFLQ(term_budgets=(2,)), fleet_of([device()] * 20))
    covered = np.any([plan.terms.trained for plan in plans.values()], axis=0)
    # A term is left out by all 20 with (3/4)^20 = 0.3 %; of 64 terms, 0.2 are expected to be.
    assert covered.sum() >= covered.size - 3


@pytest.mark.parametrize("importance", ["sensitivity", "magnitude"])
def test_later_rounds_train_the_terms_that_moved_most(importance: Any) -> None:
    strategy = HAFLQ(importance=importance, explore_share=0.0, term_budgets=(2,))
    fleet = fleet_of([device()])
    state = after_one_round(fleet, np.arange(RANK))
    (plan,) = strategy.plan(state, fleet, [0], np.random.default_rng(0))
    assert (plan.terms.trained == [False] * 6 + [True] * 2).all()


def test_random_importance_is_drawn_again_every_round() -> None:
    strategy, fleet = HAFLQ(importance="random", term_budgets=(2,)), fleet_of([device()])
    first, second = plans_of(strategy, fleet, seed=0)[0], plans_of(strategy, fleet, seed=1)[0]
    assert not np.array_equal(first.terms.trained, second.terms.trained)


options = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(["freezing", "truncation"]),
        "allocation_scope": st.sampled_from(["shared", "per_device"]),
        "block_rule": st.sampled_from(["greedy", "threshold"]),
        "upload_policy": st.sampled_from(["adaptive", "uniform", "discard"]),
        "upload_levels": st.sampled_from([(2, 4, 8, 16), (2,), (4, 8)]),
        "upload_s": st.sampled_from(["auto", "round", 1e-4, 1e-3, 1e-2]),
    }
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(15_000, 50_000), st.floats(1e3, 1e7)), min_size=1, max_size=4),
    options,
    st.sampled_from([6, 8]),  # rows of 6 numbers at 2 bits do not end on a byte
)
def test_every_plan_fits_its_memory_and_its_upload(
    devices: list[tuple[int, float]], given_options: dict[str, Any], hidden: int
) -> None:
    fleet = fleet_of([device(m, LinkRate(1e6, rate)) for m, rate in devices], hidden=hidden)
    strategy = HAFLQ(**given_options)
    for plan in plans_of(strategy, fleet).values():
        assert fleet.cost(plan).memory.total <= fleet.memory_budget_bytes(plan.device_id)
        if isinstance(strategy.upload_s, float):
            budget_bits = 8 * fleet.link(plan.device_id).up_bytes_per_s * strategy.upload_s
            limit_bits = max(budget_bits, upload_bits(fleet, 0))
            assert 8 * fleet.cost(plan).upload_bytes <= limit_bits


def by_hand(aggregation: Any) -> Factors:
    """Return the mean for n = (1, 3).

    Device 1 sends terms 0 and 1, device 2 term 1; term 2 is sent by nobody.
    """
    key = ModuleKey(0, "query")
    old = Factors(np.full((3, 2), 9, np.float32), np.full((1, 3), 9, np.float32))
    start = Adapter({key: old}, {"bias": np.array([0.0], np.float32)}, scale=1.0)
    updates = []
    for device_id, examples, rows, sent in (
        (1, 1, [[1, 2], [3, 4], [9, 9]], [True, True, False]),
        (2, 3, [[9, 9], [7, 8], [9, 9]], [False, True, False]),
    ):
        trained = np.array(sent)[None, None, :]
        terms = TermGrid(np.ones_like(trained), trained, np.where(trained, 8, 0).astype(np.uint8))
        plan = TrainingPlan(device_id, terms, ("fp16",), (32,), local_steps=1, batch_size=1)
        end = Factors(np.array(rows, np.float32), old.b)
        adapter = Adapter({key: end}, {"bias": np.array([4.0 * device_id], np.float32)}, 1.0)
        updates.append(ClientUpdate(plan, Broadcast(0, start), adapter, examples, 0.0))
    strategy = HAFLQ(rank=3, aggregation=aggregation)
    merged = strategy.aggregate(strategy.init(start), updates)
    assert merged.version == 1
    assert merged.adapter.head["bias"] == [7.0]
    return merged.adapter.factors[key]


def test_rank_one_merging_averages_over_the_senders_of_a_term() -> None:
    assert by_hand("rank_one").a.tolist() == [[1, 2], [6, 7], [9, 9]]


def test_zero_padding_dilutes_a_term_that_some_did_not_send() -> None:
    assert by_hand("zero_padding").a.tolist() == [[0.25, 0.5], [6, 7], [9, 9]]


def test_sensitivity_is_smoothed_with_the_strategy_s_betas() -> None:
    strategy, fleet = HAFLQ(beta1=0.5, beta2=0.25), fleet_of([device()])
    state = state_of(strategy, fleet)
    rng = np.random.default_rng(0)
    (plan,) = strategy.plan(state, fleet, [0], rng)
    update = trained_update(plan, strategy.broadcast(state, plan), rng)
    expected = state.memory.observe([update], beta1=0.5, beta2=0.25).score
    assert np.array_equal(strategy.aggregate(state, [update]).memory.score, expected)


def test_the_same_seed_gives_the_same_plans_in_whatever_order_devices_are_listed() -> None:
    strategy, fleet = HAFLQ(term_budgets=(3,)), fleet_of([device()] * 4)
    state = state_of(strategy, fleet)
    forward, backward = (
        strategy.plan(state, fleet, cohort, np.random.default_rng(5))
        for cohort in ([0, 1, 2, 3], [3, 2, 1, 0])
    )
    assert [(p.device_id, p.workload) for p in forward] == [
        (p.device_id, p.workload) for p in backward
    ]


@pytest.mark.parametrize("mode", ["freezing", "truncation"])
def test_a_quadratic_is_solved_although_no_device_trains_all_terms(mode: Any) -> None:
    """Every device pulls the terms that it sends half way to the same target."""
    strategy = HAFLQ(mode=mode, term_budgets=(2,), upload_s=1e9)
    fleet = fleet_of([device()] * 3)
    state = state_of(strategy, fleet)
    target = random_adapter(fleet.model, RANK, np.random.default_rng(99))
    rng = np.random.default_rng(0)
    for _ in range(200):
        plans = strategy.plan(state, fleet, fleet.device_ids, rng)
        updates = [pulled(plan, strategy.broadcast(state, plan), target) for plan in plans]
        state = strategy.aggregate(state, updates)
    for key, wanted in target.factors.items():
        assert state.adapter.factors[key].a == pytest.approx(wanted.a, abs=1e-2)
        assert state.adapter.factors[key].b == pytest.approx(wanted.b, abs=1e-2)


def pulled(plan: TrainingPlan, broadcast: Broadcast, target: Adapter) -> ClientUpdate:
    start, modules = broadcast.adapter, broadcast.adapter.modules
    factors = {}
    for key, (a, b) in start.factors.items():
        sent = plan.terms.uploaded[key.block, modules.index(key.module)]
        to = target.factors[key]
        factors[key] = Factors(a + 0.5 * sent[:, None] * (to.a - a), b + 0.5 * sent * (to.b - b))
    return ClientUpdate(plan, broadcast, replace(start, factors=factors), 10, 0.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"alpha": 0.0}, "alpha must be above 0 and finite, got 0.0"),
        ({"beta1": 1.0}, r"beta1 must be in \[0, 1\), got 1.0"),
        ({"beta2": -0.1}, r"beta2 must be in \[0, 1\), got -0.1"),
        ({"explore_share": 1.5}, r"explore_share must be in \[0, 1\], got 1.5"),
        ({"threshold_share": -1}, r"threshold_share must be in \[0, 1\], got -1"),
        ({"term_budgets": ()}, r"term_budgets must be rising numbers of at least 1, got \(\)"),
        ({"term_budgets": (4, 2)}, r"term_budgets must be rising .*, got \(4, 2\)"),
        ({"term_budgets": (0, 2)}, r"term_budgets must be .* at least 1, got \(0, 2\)"),
        ({"upload_levels": (2, 3)}, r"upload_levels must be rising numbers among 2, 4, 8, 16, got"),
        ({"upload_s": 0}, "upload_s must be auto, round or above 0, got 0"),
        ({"upload_s": "soon"}, "upload_s must be auto, round or above 0, got 'soon'"),
        ({"mode": "melting"}, "mode must be one of freezing, truncation, got 'melting'"),
        ({"salience": "x"}, "salience must be one of wanda, taylor, influence, outerr, got 'x'"),
        ({"aggregation": "sum"}, "aggregation must be one of rank_one, zero_padding, got 'sum'"),
    ],
)
def test_a_wrong_option_is_named_with_what_must_hold(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HAFLQ(**given)
