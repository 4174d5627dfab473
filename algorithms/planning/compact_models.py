"""Plans models of fewer blocks: how many a device can train, the plan, and the plain mean."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from annotated_types import MinLen

from algorithms.planning.term_budgets import truncated
from algorithms.strategy import FleetView, make_plan
from devices.vocabulary.plan import BlockFormat, ClientUpdate, DeviceId, TrainingPlan
from traces.arrays import BoolArray
from traces.options import Count

BlockCounts = Literal["memory"] | Annotated[tuple[Count, ...], MinLen(1)]
"""``memory``: a device trains as many blocks as fit. A list limits that, as the fixed tiers of the
papers do: device k to entry k mod n."""


def block_counts(
    fleet: FleetView, cohort: Sequence[DeviceId], *, rank: int, limits: BlockCounts
) -> dict[DeviceId, int]:
    """Return the blocks that each device holds and trains; one that holds none is absent."""
    num_blocks = fleet.model.num_blocks
    peaks: dict[str, list[int]] = {}  # profile name -> peak bytes of 1, 2, .. L blocks
    counts = {}
    for device_id in cohort:
        profile = fleet.profile(device_id).name
        if profile not in peaks:
            peaks[profile] = _peak_bytes(fleet, device_id, rank)
        most = bisect_right(peaks[profile], fleet.memory_budget_bytes(device_id))
        limit = num_blocks if limits == "memory" else limits[device_id % len(limits)]
        counts[device_id] = min(most, limit)
    return {device_id: count for device_id, count in counts.items() if count > 0}


def compact_plan(
    fleet: FleetView, device_id: DeviceId, present: BoolArray, *, rank: int
) -> TrainingPlan:
    """Return a plan that trains every term of the blocks ``present`` (L,); others are absent."""
    formats: list[BlockFormat] = ["fp32" if is_present else "absent" for is_present in present]
    held = np.broadcast_to(present[:, None, None], fleet.model.grid_shape(rank))
    return make_plan(fleet, device_id, truncated(held), tuple(formats))


def counted_alike(updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
    """Return the updates with one example each, so that means over them are not weighted."""
    return [replace(update, num_examples=1) for update in updates]


def _peak_bytes(fleet: FleetView, device_id: DeviceId, rank: int) -> list[int]:
    """Return (L,): the memory in bytes of 1, 2, .. L blocks, which are all alike."""
    index = np.arange(fleet.model.num_blocks)
    plans = [compact_plan(fleet, device_id, index <= last, rank=rank) for last in index]
    return [fleet.cost(plan).memory.total for plan in plans]
