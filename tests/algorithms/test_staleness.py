"""An aggregation makes of updates what the equation of each pacing says, in numbers worked by
hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from algorithms.merging.staleness import up_to_date, with_change_added, with_model_mixed
from algorithms.pacing import FedAsync, FedBuff, OverSelection, Pacing, SemiSynchronous, Synchronous
from algorithms.strategies.fedlora import FedLoRA
from devices.vocabulary.plan import (
    Adapter,
    Broadcast,
    ClientUpdate,
    Factors,
    ModuleKey,
    TermGrid,
    TrainingPlan,
)

KEY = ModuleKey(0, "query")
TERMS = TermGrid.top_blocks((1, 1, 2), 1)


def adapter(value: float) -> Adapter:
    factors = Factors(np.full((2, 3), value, np.float32), np.full((4, 2), value, np.float32))
    return Adapter({KEY: factors}, {"head": np.full(3, value, np.float32)}, 2.0)


def update(
    start: float,
    end: float,
    *,
    version: int = 0,
    device_id: int = 0,
    num_examples: int = 10,
    terms: TermGrid = TERMS,
) -> ClientUpdate:
    """Return an update whose every number went from ``start`` to ``end``."""
    plan = TrainingPlan(device_id, terms, ("fp32",), (32,), 1, 1)
    broadcast = Broadcast(version, adapter(start))
    return ClientUpdate(plan, broadcast, adapter(end), num_examples, 0.0)


def merged(pacing: Pacing, x: float, version: int, updates: list[ClientUpdate]) -> float:
    """Return the value that every number has after one aggregation of FedLoRA."""
    strategy = FedLoRA(rank=2)
    state = replace(strategy.init(adapter(x)), version=version)
    current = Broadcast(version, adapter(x))
    after = strategy.aggregate(state, [up_to_date(one, current, pacing) for one in updates])
    values = np.concatenate([v.ravel() for v in (*after.adapter.factors[KEY],
                                                 *after.adapter.head.values())])  # fmt: skip
    assert np.ptp(values) == 0
    return float(values[0])


@pytest.mark.parametrize("pacing", [Synchronous(2, deadline_s=60.0), OverSelection(2)])
def test_a_round_ends_with_the_mean_by_examples(pacing: Pacing) -> None:
    """With 10 examples at 3 and 30 at 5, the mean is 1/4 of 3 and 3/4 of 5, whatever x was."""
    arrived = [
        update(1.0, 3.0, version=7),
        update(1.0, 5.0, version=7, device_id=1, num_examples=30),
    ]
    assert merged(pacing, 1.0, 7, arrived) == pytest.approx(4.5)


def test_a_buffer_adds_the_mean_of_its_faded_changes() -> None:
    """The model has x = 10 at version 4.

    Device 0 (10 examples) went from 1 to 3, staleness 3: half of 2. Device 1 (30 examples) went
    from 10 to 14, fresh: 4. The step is 0.7 (1/4 x 1 + 3/4 x 4) = 2.275.
    """
    pacing = FedBuff(2, 2, server_rate=0.7, staleness_exponent=0.5)
    buffer = [
        update(1.0, 3.0, version=1),
        update(10.0, 14.0, version=4, device_id=1, num_examples=30),
    ]
    assert merged(pacing, 10.0, 4, buffer) == pytest.approx(12.275)


def test_a_stale_buffer_makes_a_smaller_step() -> None:
    """All changes are 2 and all stalenesses 3: divided by the weights' sum, the step would be 2."""
    buffer = [update(1.0, 3.0, version=1, device_id=k) for k in range(3)]
    assert merged(FedBuff(3, 3), 10.0, 4, buffer) == pytest.approx(11.0)


def test_a_period_merges_late_changes_faded_beside_fresh_ones() -> None:
    """Half of a change of 4, one period late with exponent 1, is added to half of a fresh change of
    1."""
    pacing = SemiSynchronous(2, 1.0, staleness_exponent=1.0)
    arrived = [update(0.0, 4.0, version=1), update(10.0, 11.0, version=2, device_id=1)]
    assert merged(pacing, 10.0, 2, arrived) == pytest.approx(11.5)


def test_fedasync_mixes_the_model_of_a_stale_device_in_and_not_its_change() -> None:
    """Staleness 3 and exponent 0.5 halve the rate of 0.9: 0.55 x 10 + 0.45 x 3 = 6.85. Its change
    of 2 added to the model would give 10.9."""
    stale = update(1.0, 3.0, version=1)
    assert merged(FedAsync(2, 0.9), 10.0, 4, [stale]) == pytest.approx(6.85)


def test_fedasync_mixes_a_fresh_update_by_its_rate() -> None:
    """The merged value is 0.1 x 1 + 0.9 x 3."""
    assert merged(FedAsync(1, 0.9), 1.0, 0, [update(1.0, 3.0)]) == pytest.approx(2.8)


def test_for_a_fresh_update_model_and_change_are_one_to_the_last_bit() -> None:
    fresh, current = update(1.1, 3.7, version=4), Broadcast(4, adapter(1.1))
    by_model = with_model_mixed(fresh, current, 0.3)
    assert by_model.adapter.digest == with_change_added(fresh, current, 0.3).adapter.digest


def test_only_what_the_update_sent_is_mixed() -> None:
    """Term 1 was held and not sent; of term 0, A stays where it is the same for all devices."""
    bits = np.array([[[32, 0]]], dtype=np.uint8)
    grid = TermGrid(np.ones((1, 1, 2), bool), bits > 0, bits)
    for use, a_sent in (("both", 6.5), ("b_only", 10.0)):
        one = update(1.0, 3.0, version=1, terms=replace(grid, use=use))
        (a, b), head = (
            (found := with_model_mixed(one, Broadcast(4, adapter(10.0)), 0.5)).adapter.factors[KEY],
            found.adapter.head["head"],
        )
        assert a[0].tolist() == [a_sent] * 3
        assert a[1].tolist() == [10.0] * 3
        assert b.tolist() == [[6.5, 10.0]] * 4
        assert head.tolist() == [6.5] * 3


def test_a_fresh_product_fades_and_its_head_is_mixed() -> None:
    one = update(1.0, 3.0, version=1, terms=replace(TERMS, use="fresh"))
    found = with_model_mixed(one, Broadcast(4, adapter(10.0)), 0.5)
    assert found.broadcast.version == 1
    assert (found.adapter.factors[KEY].a == 3.0).all()
    assert (found.adapter.factors[KEY].b == 1.5).all()
    assert (found.adapter.head["head"] == 6.5).all()


def test_what_nobody_changed_stands_as_it_is_now() -> None:
    moved = with_change_added(update(1.0, 1.0), Broadcast(7, adapter(10.0)), 0.25)
    assert moved.broadcast.version == 7
    assert (moved.adapter.head["head"] == 10.0).all()


def test_an_update_brought_up_to_date_says_what_its_device_really_started_from() -> None:
    """Whoever keeps track of the base that a device has must not take it for the newest one."""
    fresh = update(1.0, 3.0, version=2)
    late = up_to_date(fresh, Broadcast(7, adapter(10.0)), FedBuff(2, 2))
    assert late.broadcast.version == 7
    assert late.base_version == fresh.base_version == 2
