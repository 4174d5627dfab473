"""Models of fewer blocks: how many a device can train, the plan that does, and plain means."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from algorithms.options import Rule
from algorithms.strategy import FleetView, make_plan
from algorithms.term_budgets import truncated
from devices.plan import BlockFormat, BoolArray, ClientUpdate, DeviceId, TrainingPlan

BlockCounts = Literal["memory"] | tuple[int, ...]
"""``memory``: a device trains as many blocks as fit. A list limits that, as the fixed tiers of the
papers do: device k to entry k mod n."""

BLOCK_COUNTS_RULE: Rule = (
    "blocks",
    "memory or numbers of at least 1",
    lambda value: value == "memory" or (len(value) > 0 and all(count >= 1 for count in value)),
)


def block_counts(
    fleet: FleetView, cohort: Sequence[DeviceId], *, rank: int, limits: BlockCounts
) -> dict[DeviceId, int]:
    """How many blocks each device holds and trains, by rising device; without those with none."""
    num_blocks = fleet.model.num_blocks
    known: dict[tuple[str, int], int] = {}
    counts = {}
    for device_id in sorted(cohort):
        key = (fleet.profile(device_id).name, fleet.memory_budget_bytes(device_id))
        if key not in known:
            known[key] = _most_blocks(fleet, device_id, rank)
        limit = num_blocks if limits == "memory" else limits[device_id % len(limits)]
        counts[device_id] = min(known[key], limit)
    return {device_id: count for device_id, count in counts.items() if count > 0}


def compact_plan(
    fleet: FleetView, device_id: DeviceId, present: BoolArray, *, rank: int
) -> TrainingPlan:
    """Every term of the blocks that are ``present`` (L,) held and trained, the others absent."""
    formats: list[BlockFormat] = ["fp32" if is_present else "absent" for is_present in present]
    held = np.broadcast_to(present[:, None, None], fleet.model.grid_shape(rank))
    return make_plan(fleet, device_id, truncated(held), tuple(formats))


def counted_alike(updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
    """With one example each, so that means over them are not weighted."""
    return [replace(update, num_examples=1) for update in updates]


def _most_blocks(fleet: FleetView, device_id: DeviceId, rank: int) -> int:
    """Blocks are alike, so that it matters how many there are and not which."""
    index = np.arange(fleet.model.num_blocks)
    budget_bytes = fleet.memory_budget_bytes(device_id)

    def is_too_much(count: int) -> bool:
        plan = compact_plan(fleet, device_id, index < count, rank=rank)
        return fleet.cost(plan).memory.total > budget_bytes

    return bisect_left(range(1, len(index) + 1), True, key=is_too_much)
