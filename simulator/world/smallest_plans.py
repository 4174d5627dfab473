"""Makes the smallest plans of all, and checks that every device can hold one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from devices.cost.model import CostModel
from devices.fleet.fleet import Fleet
from devices.models.spec import ModelSpec
from devices.vocabulary.plan import BlockFormat, TermGrid, TrainingPlan
from simulator.config.problems import Problems
from simulator.config.schema import RunConfig
from traces.arrays import BoolArray


def smallest_plans(config: RunConfig, model: ModelSpec) -> Iterator[TrainingPlan]:
    """Return the smallest plans that any strategy could make: one for each way to keep activations.

    None is the smallest for every model: packing saves memory that a block holds, and needs room
    while it unpacks.
    """
    terms: BoolArray = np.zeros(model.grid_shape(config.strategy.rank), dtype=np.bool_)
    terms[-1, 0, 0] = True
    absent: BlockFormat = "absent"
    for bits in (32, 4, 0):
        yield TrainingPlan(
            device_id=0,
            terms=TermGrid(terms, terms, np.where(terms, 2, 0).astype(np.uint8)),
            weight_formats=(*[absent] * (model.num_blocks - 1), "nf4"),
            activation_bits=(bits,) * model.num_blocks,
            local_steps=1,
            batch_size=config.local.batch_size,
            proximal_mu=config.local.proximal_mu,
            micro_batch=config.local.micro_batch,
        )


def check_budgets(
    config: RunConfig,
    fleet: Fleet,
    *,
    model: ModelSpec,
    cost_model: CostModel,
    problems: Problems,
) -> None:
    """Check that every device can hold the smallest plan; else it could never take part."""
    profile = fleet[0].profile  # peak memory does not depend on the profile
    floor = min(cost_model.cost(p, profile).memory.total for p in smallest_plans(config, model))
    short = np.flatnonzero(fleet.memory_budget_bytes < floor)
    if not len(short):
        return
    device = int(short[np.argmin(fleet.memory_budget_bytes[short])])
    is_shared = min(getattr(config.fleet, "memory_share", (1.0,))) < 1
    problems.add(
        f"fleet{'.memory_share' * is_shared}: a device must hold at least the smallest plan, "
        f"{floor / 1e6:.1f} MB (one term in one block of 4-bit weights, the others absent; raise "
        f"memory_share or lower local.batch_size), got {len(short)} that hold less, the least "
        f"{fleet.memory_budget_bytes[device] / 1e6:.1f} MB: device {device}, "
        f"{fleet.profile_of(device).name}"
    )
