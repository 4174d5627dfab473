"""A fleet's traces, looked up without its devices, give what the devices' own traces give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from devices.fleet.fleet import Assigned, Fleet
from simulator.engine.tracks import Tracks
from tests.simulator.small import make_device
from traces.bandwidth import BandwidthTrace, Link
from traces.steps import StepTrace

COUNT = 6


def fleet_of(rng: np.random.Generator) -> Fleet:
    """Return a fleet whose devices share traces that loop, end or never change."""

    def trace() -> StepTrace:
        if rng.random() < 0.25:
            return StepTrace.constant(float(rng.uniform(0.1, 1)))
        lengths_s = rng.uniform(0.1, 3, rng.integers(1, 5))
        period_s = float(lengths_s.sum()) if rng.random() < 0.7 else np.inf
        values = rng.choice([0.0, 0.4, 1.0], len(lengths_s))
        starts_s = np.concatenate([[0.0], np.cumsum(lengths_s)[:-1]])
        return replace(StepTrace(starts_s, values, period_s), offset_s=rng.uniform(0, 0.1))

    def rate() -> BandwidthTrace:
        steps = trace()
        return BandwidthTrace(
            steps.time_s, 1e5 * steps.values + 1.0, steps.period_s, steps.offset_s
        )

    def spread(pool: list[object]) -> Assigned[object]:
        offset_s = np.where(rng.random(COUNT) < 0.3, 0.0, rng.uniform(0, 20, COUNT))
        return Assigned(pool, rng.integers(0, len(pool), COUNT), offset_s)

    plain = Fleet.of([make_device(k) for k in range(COUNT)])
    return replace(
        plain,
        link=spread([Link("any", rate(), rate()) for _ in range(3)]),
        latency=spread([trace(), trace()]),
        speed=spread([trace(), trace()]),
        speed_factor=rng.choice([1.0, 1.0, 1.5], COUNT),
        free_memory=spread([trace()]),
        _made={},
    )


@given(st.integers(0, 2**32 - 1))
def test_a_track_gives_the_floats_of_each_devices_own_trace(seed: int) -> None:
    rng = np.random.default_rng(seed)
    fleet = fleet_of(rng)
    tracks = Tracks(fleet)
    for device in fleet:
        k, at_s, amount = device.device_id, float(rng.uniform(0, 1e4)), float(rng.uniform(0, 3))
        assert tracks.downlink.time_to(k, 1e5 * amount, at_s) == (
            device.link.downlink.steps.time_to(1e5 * amount, at_s)
        )
        assert tracks.uplink.time_to(k, 1e5 * amount, at_s) == (
            device.link.uplink.steps.time_to(1e5 * amount, at_s)
        )
        assert tracks.speed.time_to(k, amount, at_s) == device.speed.time_to(amount, at_s)
        assert tracks.latency.at(k, at_s) == device.latency.at(at_s)
        assert tracks.free_memory.at(k, at_s) == device.free_memory.at(at_s)
        assert tracks.free_memory.lowest(k) == device.free_memory.lowest
