"""HAFLQ fits the bits of an upload to a device's bandwidth."""

from __future__ import annotations

import numpy as np
import pytest

from algorithms.strategies.haflq import HAFLQ
from algorithms.strategy import LinkRate, make_plan, round_trip_s
from devices.vocabulary.plan import Broadcast, TermGrid
from tests.algorithms.haflq_fleets import (
    RANK,
    after_one_round,
    device,
    fleet_of,
    plans_of,
    state_of,
    upload_bits,
)
from tests.algorithms.static_fleet import trained_update


def test_all_terms_go_at_16_bits_where_bandwidth_allows() -> None:
    plan = plans_of(HAFLQ(upload_s=1e9), fleet_of([device()]))[0]
    assert (plan.terms.upload_bits == 16).all()


def test_auto_lets_the_median_device_upload_at_16_bits_and_no_slower_one() -> None:
    rates = (4e5, 1e5, 1e4)
    fleet = fleet_of([device(link=LinkRate(1e6, rate)) for rate in rates])
    plans = plans_of(HAFLQ(), fleet)
    bits = [plan.terms.upload_bits for plan in plans.values()]
    assert (bits[0] == 16).all()
    assert (bits[1] == 16).all()
    assert 8 * fleet.cost(plans[2]).upload_bytes <= upload_bits(fleet, 16) * rates[2] / rates[1]
    assert 0 < bits[2].mean() < 16


def test_a_limit_in_seconds_is_met_to_the_bit() -> None:
    rate, seconds = 1000.0, upload_bits(fleet_of([device()]), 16) / 8 / 1000
    fleet = fleet_of([device(link=LinkRate(1e6, rate))])
    assert (plans_of(HAFLQ(upload_s=seconds), fleet)[0].terms.upload_bits == 16).all()
    coarser = plans_of(HAFLQ(upload_s=seconds - 1 / 8 / rate), fleet)[0].terms.upload_bits
    assert (coarser == 8).sum() == 1
    assert (coarser == 16).sum() == coarser.size - 1


def test_codes_that_do_not_end_on_a_byte_are_within_the_limit() -> None:
    probe = fleet_of([device()], hidden=5)  # rows of 5 and 20 numbers
    head, full = upload_bits(probe, 0), upload_bits(probe, 2)
    for budget_bits in range(head, full, 41):
        fleet = fleet_of([device(link=LinkRate(1e6, budget_bits / 8))], hidden=5)
        plan = plans_of(HAFLQ(upload_levels=(2,), upload_s=1.0), fleet)[0]
        assert 8 * fleet.cost(plan).upload_bytes <= budget_bits


def test_important_terms_are_sent_finer() -> None:
    fleet = fleet_of([device(link=LinkRate(1e6, 1000.0))])
    state = after_one_round(fleet, 4.0 ** np.arange(RANK))
    strategy = HAFLQ(upload_s=upload_bits(fleet, 16) / 8 / 1000 / 3)
    (plan,) = strategy.plan(state, fleet, [0], np.random.default_rng(0))
    assert len(np.unique(plan.terms.upload_bits)) > 1
    for module in range(2):  # within a module all terms are equally large
        bits = plan.terms.upload_bits[:, module].ravel()
        score = state.memory.score[:, module].ravel()
        matters_more = score[:, None] > score * (1 + 1e-9)
        assert (bits[:, None] >= bits)[matters_more].all()


def test_a_term_of_unknown_sensitivity_is_not_starved_on_a_slow_link() -> None:
    strategy, fleet = HAFLQ(explore_share=0.0, upload_s=1.0), fleet_of([device()])
    state = state_of(strategy, fleet)
    shape = fleet.model.grid_shape(RANK)
    known = np.broadcast_to(np.arange(RANK) < 4, shape)
    terms = TermGrid(np.ones(shape, bool), known, np.where(known, 16, 0).astype(np.uint8))
    update = trained_update(
        make_plan(fleet, 0, terms), Broadcast(0, state.adapter), np.random.default_rng(0)
    )
    state = strategy.aggregate(state, [update])
    slow = fleet_of([device(link=LinkRate(1e6, upload_bits(fleet, 16) / 8 / 6))])
    (plan,) = strategy.plan(state, slow, [0], np.random.default_rng(0))
    assert plan.terms.uploaded[~known].mean() > 0.5
    assert plan.terms.uploaded.mean() < 0.8


@pytest.mark.parametrize("up_bytes_per_s", [0.0, 1e-3])
def test_a_device_without_bandwidth_for_terms_still_sends_its_head(up_bytes_per_s: float) -> None:
    fleet = fleet_of([device(link=LinkRate(1e6, up_bytes_per_s)), device(), device()])
    plan = plans_of(HAFLQ(), fleet)[0]
    assert not plan.terms.uploaded.any()
    assert plan.terms.trained.any()
    assert 8 * fleet.cost(plan).upload_bytes == upload_bits(fleet, 0)


def test_a_fleet_without_uplink_is_planned_without_a_limit() -> None:
    plan = plans_of(HAFLQ(), fleet_of([device(link=LinkRate(1e6, 0.0))]))[0]
    assert (plan.terms.upload_bits == 16).all()


def test_uniform_gives_all_terms_one_level() -> None:
    rate = upload_bits(fleet_of([device()]), 16) / 8
    fleet = fleet_of([device(link=LinkRate(1e6, rate))])
    plan = plans_of(HAFLQ(upload_policy="uniform", upload_s=0.9), fleet)[0]
    assert (plan.terms.upload_bits == 8).all()


def test_discard_sends_terms_at_16_bits_or_not_at_all() -> None:
    rate = upload_bits(fleet_of([device()]), 16) / 8
    fleet = fleet_of([device(link=LinkRate(1e6, rate))])
    bits = plans_of(HAFLQ(upload_policy="discard", upload_s=0.5), fleet)[0].terms.upload_bits
    assert set(np.unique(bits)) == {0, 16}
    # More than half the budget is left to terms of either size, less one that did not fit.
    assert 0.4 * bits.size < (bits == 16).sum() < 0.7 * bits.size


def test_a_slow_link_cuts_no_bits_where_its_upload_ends_before_the_round() -> None:
    slow_link, slow_processor = LinkRate(1e6, 1e4), 1e6
    devices = [device(), device(link=slow_link), device(flops_per_s=slow_processor)]
    fleet = fleet_of(devices)
    assert plans_of(HAFLQ(upload_s="auto"), fleet)[1].terms.upload_bits.mean() < 16
    plans = plans_of(HAFLQ(upload_s="round"), fleet)
    assert round_trip_s(fleet, plans[1]) < round_trip_s(fleet, plans[2])
    assert all((p.terms.upload_bits[p.terms.trained] == 16).all() for p in plans.values())


def test_an_upload_that_would_prolong_the_round_is_cut_to_its_end() -> None:
    fast, slow = LinkRate(1e6, 1e6), LinkRate(1e6, 7e5)
    fleet = fleet_of([device(link=fast), device(link=fast), device(link=slow)])
    plans = plans_of(HAFLQ(upload_s="round"), fleet)
    assert 0 < plans[2].terms.upload_bits.mean() < 16
    last_s = max(round_trip_s(fleet, plans[k]) for k in (0, 1))
    assert round_trip_s(fleet, plans[2]) <= last_s * (1 + 1e-9)
