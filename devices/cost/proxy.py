"""Charges the costs of a large model for the plans of a small one that is trained in its place."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from devices.cost.closed_form import MAX_REMEMBERED, ClosedFormCost
from devices.cost.model import Cost
from devices.fleet.profile import DeviceProfile
from devices.models.spec import ModelSpec
from devices.vocabulary.plan import TrainingPlan


@dataclass(frozen=True)
class ProxyCost:
    """This cost model prices a plan for a proxy as the same plan for a large model.

    Each block of the proxy stands for ``blocks_each`` consecutive blocks of the large model, and
    each adapted module for the one in its place: their formats, activation bits and terms are those
    that the plan names for the proxy's. So bytes, FLOPs, memory, seconds and joules are the large
    model's, while the gradients are the proxy's. Our construction; no paper has it.

    Raises ValueError where the blocks do not divide or the modules differ in number.
    """

    proxy: ModelSpec
    large: ClosedFormCost
    _plans: dict[bytes, TrainingPlan] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        large = self.large.model
        if large.num_blocks % self.proxy.num_blocks:
            raise ValueError(
                f"the blocks of {large.name} must be a multiple of the {self.proxy.num_blocks} of "
                f"{self.proxy.name}, its proxy, got {large.num_blocks}"
            )
        if len(large.targets) != len(self.proxy.targets):
            raise ValueError(
                f"as many modules of {large.name} must be adapted as of {self.proxy.name}, its "
                f"proxy, {len(self.proxy.targets)}, got {len(large.targets)}"
            )

    @property
    def blocks_each(self) -> int:
        """Return the number of blocks of the large model that one block of the proxy stands for."""
        return self.large.model.num_blocks // self.proxy.num_blocks

    def cost(self, plan: TrainingPlan, profile: DeviceProfile) -> Cost:
        """Return what the plan costs the large model on a device.

        Raises ValueError where the profile has no rate for the width of the products.
        """
        enlarged = self._plans.get(plan.workload)
        if enlarged is None:
            if len(self._plans) >= MAX_REMEMBERED:
                self._plans.clear()
            enlarged = self._plans[plan.workload] = repeated(plan, self.blocks_each)
        return self.large.cost(enlarged, profile)


def repeated(plan: TrainingPlan, times: int) -> TrainingPlan:
    """Return the plan for a model that has each block of this one so many times in a row."""
    grid = plan.terms
    terms = replace(
        grid,
        held=grid.held.repeat(times, axis=0),
        trained=grid.trained.repeat(times, axis=0),
        upload_bits=grid.upload_bits.repeat(times, axis=0),
    )
    missed = plan.missed_ranks
    return replace(
        plan,
        terms=terms,
        weight_formats=tuple(one for one in plan.weight_formats for _ in range(times)),
        activation_bits=tuple(one for one in plan.activation_bits for _ in range(times)),
        missed_ranks=None if missed is None else np.repeat(missed, times, axis=0),
    )
