"""Zero padding gives each device a rank and takes the mean over all of them."""

from typing import Any

import numpy as np
import pytest

from algorithms.planning.term_budgets import first_terms
from algorithms.strategies.zero_padding import ZeroPadding
from algorithms.strategy import make_plan
from devices.vocabulary.plan import Adapter, Broadcast, ClientUpdate, Factors, ModuleKey
from tests.algorithms.haflq_fleets import device, fleet_of
from tests.algorithms.static_fleet import StaticFleet, random_adapter, trained_update

RANK = 8


def ranks_of(strategy: ZeroPadding, fleet: StaticFleet) -> dict[int, int]:
    state = strategy.init(fleet.model.initial_adapter(RANK, 16.0, np.random.default_rng(0)))
    plans = strategy.plan(state, fleet, fleet.device_ids, np.random.default_rng(0))
    return {plan.device_id: int(plan.terms.trained[0, 0].sum()) for plan in plans}


def memory_of(fleet: StaticFleet, num_terms: int) -> int:
    terms = first_terms(fleet.model.grid_shape(RANK), num_terms)
    return fleet.cost(make_plan(fleet, 0, terms)).memory.total


def test_a_device_holds_trains_and_sends_its_first_terms_and_no_other() -> None:
    fleet = fleet_of([device(flops_per_s=s) for s in (1e9, 1e9, 1e9 / 2.1)])
    strategy = ZeroPadding()
    state = strategy.init(fleet.model.initial_adapter(RANK, 16.0, np.random.default_rng(0)))
    plan = strategy.plan(state, fleet, [2], np.random.default_rng(0))[0]
    assert (plan.terms.held == (np.arange(RANK) < 2)).all()
    assert np.array_equal(plan.terms.held, plan.terms.trained)
    assert (plan.terms.upload_bits == np.where(plan.terms.held, 32, 0)).all()


def test_a_device_x_times_slower_than_the_median_gets_one_xth_of_the_largest_rank() -> None:
    speeds = (4e9, 1e9, 1e9 / 1.9, 1e9 / 2.1, 1e9, 1e9, 1e9 / 100)
    fleet = fleet_of([device(flops_per_s=s) for s in speeds])
    assert list(ranks_of(ZeroPadding(), fleet).values()) == [8, 8, 4, 2, 8, 8, 2]


def test_groups_give_the_fastest_third_the_largest_rank() -> None:
    fleet = fleet_of([device(flops_per_s=s) for s in (1e9, 6e9, 3e9, 2e9, 5e9, 4e9)])
    ranks = ranks_of(ZeroPadding(rank_rule="groups"), fleet)
    assert list(ranks.values()) == [2, 8, 4, 2, 8, 4]


def test_memory_alone_gives_slow_devices_the_largest_rank_too() -> None:
    fleet = fleet_of([device(flops_per_s=s) for s in (1e9, 1e9, 1e7)])
    assert ranks_of(ZeroPadding(rank_rule="memory"), fleet) == {0: 8, 1: 8, 2: 8}


@pytest.mark.parametrize("rule", ["memory", "speed", "groups"])
def test_the_rank_falls_to_the_largest_that_fits_and_then_the_device_sits_out(rule: Any) -> None:
    probe = fleet_of([device()])
    budgets = [memory_of(probe, n) - short for n in (8, 4, 2) for short in (0, 1)]
    # All devices are equally fast, so speed alone would give each the largest rank.
    fleet = fleet_of([device(budget) for budget in budgets])
    expected = {0: 8, 1: 4, 2: 4, 3: 2, 4: 2}
    if rule == "groups":  # devices of equal speed are divided into groups by their numbers
        expected |= {2: 4, 3: 2, 4: 2}
    assert ranks_of(ZeroPadding(rank_rule=rule), fleet) == expected


def test_a_rank_above_the_adapter_s_means_the_adapter_s() -> None:
    ranks = ranks_of(ZeroPadding(ranks=(2, 64)), fleet_of([device()]))
    assert ranks == {0: RANK}


def test_what_a_device_lacks_counts_as_zero_and_what_nobody_sent_keeps_its_value() -> None:
    """The numbers of examples are n = (1, 3); device 1 holds terms 0 and 1, device 2 term 0 alone;
    nobody holds term 2."""
    key = ModuleKey(0, "query")
    old = Factors(np.full((3, 2), 9, np.float32), np.full((1, 3), 9, np.float32))
    start = Adapter({key: old}, {"bias": np.array([0.0], np.float32)}, scale=1.0)
    fleet = fleet_of([device()] * 3, salience=[1.0])
    updates = []
    for device_id, examples, rows in ((1, 1, [[3, 4], [1, 2], [9, 9]]), (2, 3, [[7, 8]] * 3)):
        plan = make_plan(fleet, device_id, first_terms((1, 1, 3), 3 - device_id))
        end = Factors(np.array(rows, np.float32), np.array(rows, np.float32)[:, :1].T.copy())
        adapter = Adapter({key: end}, {"bias": np.array([4.0 * device_id], np.float32)}, 1.0)
        updates.append(ClientUpdate(plan, Broadcast(0, start), adapter, examples, 0.0))
    strategy = ZeroPadding(rank=3)
    merged = strategy.aggregate(strategy.init(start), updates).adapter
    assert merged.factors[key].a.tolist() == [[6, 7], [0.25, 0.5], [9, 9]]
    assert merged.factors[key].b.tolist() == [[6, 0.25, 9]]
    assert merged.head["bias"].tolist() == [7.0]


def test_at_one_rank_it_is_the_mean_over_all_devices_and_not_the_first_one_s_share() -> None:
    fleet = fleet_of([device()] * 3)
    strategy = ZeroPadding()
    state = strategy.init(random_adapter(fleet.model, RANK, np.random.default_rng(0)))
    rng = np.random.default_rng(1)
    plans = strategy.plan(state, fleet, fleet.device_ids, rng)
    updates = [
        trained_update(plan, strategy.broadcast(state, plan), rng, num_examples=n)
        for plan, n in zip(plans, (1, 2, 5), strict=True)
    ]
    merged = strategy.aggregate(state, updates).adapter
    for key, factors in merged.factors.items():
        for side in (0, 1):
            x, y, z = (u.adapter.factors[key][side].astype(np.float64) for u in updates)
            np.testing.assert_allclose(factors[side], (x + 2 * y + 5 * z) / 8, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"alpha": 0.0}, "alpha must be above 0 and finite, got 0.0"),
        ({"ranks": (4, 2)}, r"ranks must be rising numbers of at least 1, got \(4, 2\)"),
        ({"rank_rule": "dice"}, "rank_rule must be one of memory, speed, groups, got 'dice'"),
    ],
)
def test_a_wrong_option_is_named_with_what_must_hold(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ZeroPadding(**given)
