"""FedQuad learns from one round for the next, and merges updates."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from algorithms.strategies.fedquad import Choice, FedQuad
from algorithms.strategy import LinkRate
from devices.vocabulary.plan import ClientUpdate, DeviceId, ModuleKey
from tests.algorithms.fedquad_fleets import (
    AMPLE,
    COSTS,
    State,
    depths_of,
    fleets,
    one_device,
    plans_of,
    start,
    updates_of,
    with_gains,
)
from tests.algorithms.static_fleet import StaticDevice, StaticFleet, device_profile


def test_reference_time_is_that_of_the_slowest_device_as_it_was_measured() -> None:
    """Two equal devices train a block each, until one proves half as fast: then the other goes
    deeper."""
    device = StaticDevice(device_profile("twin"), AMPLE, LinkRate(1e9, 1e9), 10)
    fleet = StaticFleet([device, device], COSTS)
    strategy = FedQuad(choose="ref_time", estimate_smoothing=1.0, coverage_share=0.0)
    state = start(fleet, strategy)
    plans = plans_of(strategy, fleet, state)
    assert depths_of(plans) == {0: (1, 0), 1: (1, 0)}
    slow, quick = updates_of(strategy, fleet, state, plans)
    timing = slow.timing._replace(train_s=2 * slow.timing.train_s)
    state = strategy.aggregate(state, [replace(slow, timing=timing), quick])
    # Four blocks forward and d backward at 1.1: 5.1 s for one block, 8.4 s for all, under 10.2 s.
    assert depths_of(plans_of(strategy, fleet, state)) == {0: (1, 0), 1: (4, 0)}


def depths_where_the_top_block_gains_all(strategy: FedQuad) -> list[int]:
    """Return the depths of an ample device in seven rounds."""
    fleet = one_device(AMPLE)
    state, depths = start(fleet, strategy), []
    for _ in range(7):
        state = with_gains(state, (1, 1e-6, 1e-6, 1e-6))
        plans = plans_of(strategy, fleet, state)
        depths.append(plans[0].depth)
        state = strategy.aggregate(state, updates_of(strategy, fleet, state, plans))
    return depths


def test_blocks_of_low_gain_are_left_until_coverage_is_due() -> None:
    found = depths_where_the_top_block_gains_all(FedQuad(coverage_rounds=3))
    assert found == [1, 1, 4, 1, 1, 4, 1]


def test_a_device_trains_its_least_share_where_one_block_would_pay_most() -> None:
    found = depths_where_the_top_block_gains_all(FedQuad(coverage_rounds=3, least_share=0.5))
    assert found == [2, 2, 4, 2, 2, 4, 2]


def test_depths_change_by_no_more_than_the_bound_from_one_update_to_the_next() -> None:
    found = depths_where_the_top_block_gains_all(FedQuad(coverage_rounds=3, max_change=1))
    assert np.abs(np.diff(found)).max() == 1
    assert max(found) == 4


def share_reaching(fleet: StaticFleet, depths: dict[DeviceId, int], depth: int) -> float:
    """Return the share of the examples whose devices train at least ``depth`` blocks."""
    examples = {device_id: fleet.num_examples(device_id) for device_id in depths}
    return sum(examples[d] for d in depths if depths[d] >= depth) / sum(examples.values())


@settings(max_examples=40)
@given(
    fleet=fleets(),
    choose=st.sampled_from(["sweep", "ref_time", "marginal", "random"]),
    gains=st.lists(st.floats(1e-3, 10), min_size=4, max_size=4),
    share=st.sampled_from([0.2, 0.5, 1.0]),
    window=st.integers(1, 3),
)
def test_every_block_that_can_be_covered_is_covered_in_every_window_of_rounds(
    fleet: StaticFleet, choose: Choice, gains: list[float], share: float, window: int
) -> None:
    strategy = FedQuad(choose=choose, coverage_share=share, coverage_rounds=window)
    state, rng = start(fleet, strategy), np.random.default_rng(0)
    alone = replace(strategy, choose="common_depth")
    greatest = {
        plan.device_id: plan.depth
        for device_id in fleet.device_ids
        for plan in alone.plan(state, fleet, [device_id], rng)
    }
    assume(greatest)
    rounds = []
    for _ in range(2 * window + 1):
        state = with_gains(state, gains)
        plans = plans_of(strategy, fleet, state)
        rounds.append({plan.device_id: plan.depth for plan in plans})
        state = strategy.aggregate(state, updates_of(strategy, fleet, state, plans))
    for depth in range(1, 5):
        if share_reaching(fleet, greatest, depth) >= share:
            reached = [share_reaching(fleet, depths, depth) >= share - 1e-8 for depths in rounds]
            assert all(any(reached[i : i + window]) for i in range(len(rounds) - window + 1))


def test_blocks_never_updated_count_as_much_as_the_best_known() -> None:
    """Two depths differ only by what the lower two blocks are worth: nothing, or as much as any."""
    fleet = one_device(AMPLE)
    strategy = FedQuad()
    state = start(fleet, strategy)
    assert depths_of(plans_of(strategy, fleet, with_gains(state, (1, 0.5, 0, 0)))) == {0: (2, 0)}
    unknown = with_gains(state, (1, 0.5, np.nan, np.nan))
    assert depths_of(plans_of(strategy, fleet, unknown)) == {0: (4, 0)}


def test_where_no_update_moved_anything_all_blocks_count_alike(fleet: StaticFleet) -> None:
    strategy = FedQuad()
    state = start(fleet, strategy)
    first = depths_of(plans_of(strategy, fleet, state))
    still = with_gains(state, (0, 0, 0, np.nan))
    assert depths_of(plans_of(strategy, fleet, still)) == first


def test_gains_are_a_moving_mean_of_squared_norms_of_the_aggregated_update() -> None:
    fleet, strategy = one_device(AMPLE), FedQuad(gain_smoothing=0.25)
    state = start(fleet, strategy)
    assert np.isnan(state.memory.block_gains).all()
    expected = None
    for gains in ((1, 0, 0, 0), (1, 1, 1, 1)):  # the top block alone, then all of them
        plans = plans_of(strategy, fleet, with_gains(state, gains))
        after = strategy.aggregate(state, updates_of(strategy, fleet, state, plans))
        top = [key for key in state.adapter.factors if key.block == 3]
        change = sum(
            float(np.sum((np.float64(new) - old) ** 2))
            for key in top
            for new, old in zip(after.adapter.factors[key], state.adapter.factors[key], strict=True)
        )
        expected = change if expected is None else 0.75 * expected + 0.25 * change
        assert after.memory.block_gains[3] == pytest.approx(expected)
        assert np.isnan(after.memory.block_gains[:3]).all() == (gains[1] == 0)
        state = after


def mixed_round(fleet: StaticFleet) -> tuple[FedQuad, State, list[ClientUpdate]]:
    strategy = FedQuad(choose="ref_time", quantize="never")
    state = start(fleet, strategy)
    return strategy, state, updates_of(strategy, fleet, state, plans_of(strategy, fleet, state))


def test_each_block_is_averaged_over_the_devices_that_trained_it(fleet: StaticFleet) -> None:
    """Devices of 30, 50 and 20 examples train 1, 2 and 4 blocks."""
    strategy, state, updates = mixed_round(fleet)
    after = strategy.aggregate(state, updates)
    assert after.version == state.version + 1
    for block, weights in ((0, (0, 0, 1)), (2, (0, 5 / 7, 2 / 7)), (3, (0.3, 0.5, 0.2))):
        key = ModuleKey(block, "value")
        mean = sum(
            w * np.float64(u.adapter.factors[key].a) for w, u in zip(weights, updates, strict=True)
        )
        np.testing.assert_allclose(after.adapter.factors[key].a, mean, rtol=1e-5, atol=1e-6)
    head = sum(
        w * np.float64(u.adapter.head["classifier.weight"])
        for w, u in zip((0.3, 0.5, 0.2), updates, strict=True)
    )
    np.testing.assert_allclose(after.adapter.head["classifier.weight"], head, rtol=1e-5, atol=1e-6)
    without_fast = strategy.aggregate(state, updates[:2])
    for block in (0, 1):
        old, new = (s.adapter.factors[ModuleKey(block, "query")] for s in (state, without_fast))
        assert np.array_equal(old.a, new.a)
        assert np.array_equal(old.b, new.b)


def test_arrival_order_changes_nothing_that_the_server_remembers(fleet: StaticFleet) -> None:
    strategy, state, updates = mixed_round(fleet)
    first, *others = (strategy.aggregate(state, order) for order in permutations(updates))
    for other in others:
        assert other.adapter.digest == first.adapter.digest
        assert np.array_equal(other.memory.block_gains, first.memory.block_gains)
        assert np.array_equal(other.memory.rounds_uncovered, first.memory.rounds_uncovered)
        assert other.memory.measured == first.memory.measured


def test_broadcast_is_the_whole_global_adapter(fleet: StaticFleet) -> None:
    _, state, updates = mixed_round(fleet)
    assert updates[0].broadcast.adapter is state.adapter
    assert updates[0].broadcast.version == state.version
