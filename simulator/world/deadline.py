"""Says before a run which devices no plan will bring to the end of a round in time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from devices.vocabulary.plan import DeviceId, TrainingPlan
from simulator.config.schema import RunConfig
from simulator.world.build import World
from simulator.world.smallest_plans import smallest_plans
from traces.bandwidth import BandwidthTrace


def shortest_s(world: World, plan: TrainingPlan, device_id: DeviceId) -> float:
    """Return the least seconds that a plan can take on a device.

    It is the time at the highest rate of its link's traces and the highest speed of its own, with
    the lowest latency before each transfer and with nothing that goes wrong.
    """
    fleet = world.fleet
    cost = world.cost_model.cost(plan, fleet.profile_of(device_id))
    link, latency = fleet.link_of(device_id), fleet.latency.pool[fleet.latency.index[device_id]]
    best_speed = float(fleet.speed_of(device_id).values.max())
    return (
        _at_best_s(cost.download_bytes, link.downlink)
        + _at_best_s(cost.upload_bytes, link.uplink)
        + (cost.train_s / best_speed if best_speed else math.inf)
        + 2 * float(latency.values.min())
    )


def late_devices(config: RunConfig, world: World, plans: Iterable[TrainingPlan]) -> list[DeviceId]:
    """Return the devices whose plan cannot end before the server stops waiting for it."""
    pacing = config.pacing
    if not pacing.drops_late or math.isinf(pacing.deadline_s):
        return []
    late = (p.device_id for p in plans if shortest_s(world, p, p.device_id) > pacing.deadline_s)
    return sorted(late)


def least_deadline_s(config: RunConfig, world: World, devices: Sequence[DeviceId]) -> float:
    """Return the least seconds in which any of these devices can end the smallest of all plans."""
    plans = list(smallest_plans(config, world.model))
    return min(
        (shortest_s(world, plan, device_id) for device_id in devices for plan in plans),
        default=0.0,
    )


def _at_best_s(size_bytes: int, trace: BandwidthTrace) -> float:
    best = float(trace.rate_bytes_per_s.max())
    return size_bytes / best if best else math.inf
