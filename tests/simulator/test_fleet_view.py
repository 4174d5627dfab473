"""These tests check what the server's view of the fleet remembers."""

from __future__ import annotations

import numpy as np
import pytest

from algorithms.strategy import make_plan
from devices.fleet.fleet import Fleet
from devices.vocabulary.plan import TermGrid
from simulator.engine import server_view as fleet_view
from tests.simulator.small import make_device, make_federation


def test_costs_that_are_forgotten_are_worked_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """FedRA asks for other blocks in every round: a long run must not fill the memory."""
    monkeypatch.setattr(fleet_view, "MAX_REMEMBERED", 5)
    view = make_federation([make_device(0), make_device(1, flops_per_s=2e9)]).new_view()
    shape = view.model.grid_shape(8)
    plans = []
    for chosen in range(1, 2**3):
        held = np.broadcast_to(
            np.array([chosen >> block & 1 for block in range(3)], dtype=bool)[:, None, None], shape
        )
        bits = np.where(held, 32, 0).astype(np.uint8)
        plans += [make_plan(view, device, TermGrid(held, held, bits)) for device in (0, 1)]
    first = [view.cost(plan) for plan in plans]
    assert len(view._costs) <= 5 < len(plans)
    assert [view.cost(plan) for plan in plans] == first
    assert len({cost.train_s for cost in first}) > 5


def test_a_fleet_of_listed_devices_is_those_devices() -> None:
    devices = [make_device(k, num_examples=8 * (k + 1)) for k in range(3)]
    fleet = Fleet.of(devices)
    assert list(fleet) == devices
    assert fleet.num_examples.tolist() == [8, 16, 24]
    assert [fleet.link_of(k) for k in range(3)] == [device.link for device in devices]
    with pytest.raises(ValueError, match="listed by id from 0 on, got 2 at place 0"):
        Fleet.of(devices[::-1])
