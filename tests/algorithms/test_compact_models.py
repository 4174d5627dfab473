"""Tests how many blocks a device trains where the others may be absent from it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.planning.compact_models import (
    BlockCounts,
    block_counts,
    compact_plan,
    counted_alike,
)
from devices.vocabulary.plan import Broadcast
from tests.algorithms.haflq_fleets import ROOMY, device, fleet_of
from tests.algorithms.static_fleet import StaticFleet, random_adapter, trained_update

RANK = 8
ROOMY_FLEET = fleet_of([device()])


def peak_bytes(fleet: StaticFleet, count: int) -> int:
    plan = compact_plan(fleet, 0, np.arange(4) < count, rank=RANK)
    return fleet.cost(plan).memory.total


PEAKS = [peak_bytes(ROOMY_FLEET, count) for count in (1, 2, 3, 4)]


def counts(fleet: StaticFleet, limits: BlockCounts = "memory") -> dict[int, int]:
    return block_counts(fleet, fleet.device_ids, rank=RANK, limits=limits)


def test_a_device_trains_as_many_blocks_as_its_memory_holds_to_the_byte() -> None:
    assert counts(fleet_of([device(peak) for peak in PEAKS])) == {0: 1, 1: 2, 2: 3, 3: 4}
    assert counts(fleet_of([device(peak - 1) for peak in PEAKS])) == {1: 1, 2: 2, 3: 3}
    assert counts(ROOMY_FLEET) == {0: 4}


def test_each_further_block_takes_its_weights_terms_and_activations() -> None:
    assert len(set(np.diff(PEAKS)[1:])) == 1  # all but the lowest pass a gradient on
    block_weights = 4 * sum(layer.num_weights for layer in ROOMY_FLEET.model.linears)
    assert all(step > block_weights for step in np.diff(PEAKS))


def test_a_list_gives_its_entries_to_devices_in_turn_and_memory_limits_them() -> None:
    fleet = fleet_of([device(), device(PEAKS[1]), device(), device(), device(PEAKS[0])])
    assert counts(fleet, (3, 4)) == {0: 3, 1: 2, 2: 3, 3: 4, 4: 1}
    assert counts(fleet, (9,)) == {0: 4, 1: 2, 2: 4, 3: 4, 4: 1}


@settings(max_examples=60)
@given(
    budgets=st.lists(st.integers(PEAKS[0] // 2, PEAKS[-1] * 2), min_size=1, max_size=6),
    limits=st.just("memory") | st.lists(st.integers(1, 6), min_size=1).map(tuple),
)
def test_a_plan_fits_and_one_block_more_would_not_or_was_not_granted(
    budgets: list[int], limits: BlockCounts
) -> None:
    fleet = fleet_of([device(budget) for budget in budgets])
    chosen = counts(fleet, limits)
    for device_id, budget in enumerate(budgets):
        count = chosen.get(device_id, 0)
        granted = 4 if limits == "memory" else min(4, limits[device_id % len(limits)])
        assert count == 0 or PEAKS[count - 1] <= budget
        assert count == granted or PEAKS[count] > budget


@pytest.mark.parametrize("chosen", [(0,), (3,), (1, 2), (0, 1, 2, 3)])
def test_a_compact_plan_holds_trains_and_sends_the_present_blocks_alone(
    chosen: tuple[int, ...],
) -> None:
    fleet = fleet_of([device(ROOMY)])
    present = np.isin(np.arange(4), chosen)
    plan = compact_plan(fleet, 0, present, rank=RANK)
    assert (plan.terms.held == present[:, None, None]).all()
    assert (plan.terms.trained == plan.terms.held).all()
    assert (plan.terms.uploaded == plan.terms.held).all()
    assert np.array_equal(plan.present, present)
    cost = fleet.cost(plan)
    terms = len(chosen) * RANK * sum(t.in_features + t.out_features for t in fleet.model.targets)
    sent = 16 + 4 * (terms + fleet.model.head_parameters)
    assert cost.download_bytes == cost.upload_bytes == sent
    assert cost.memory.total == PEAKS[len(chosen) - 1]


def test_counted_alike_updates_have_one_example_each() -> None:
    rng = np.random.default_rng(0)
    plan = compact_plan(ROOMY_FLEET, 0, np.ones(4, bool), rank=RANK)
    start = Broadcast(0, random_adapter(ROOMY_FLEET.model, RANK, rng))
    updates = [trained_update(plan, start, rng, num_examples=n) for n in (3, 8)]
    alike = counted_alike(updates)
    assert [update.num_examples for update in alike] == [1, 1]
    assert [u.adapter.digest for u in alike] == [u.adapter.digest for u in updates]
