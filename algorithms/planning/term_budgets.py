"""Works out how many rank-1 terms of each module a device has time and memory for."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from algorithms.planning.bit_allocation import Formats
from algorithms.strategy import FleetView, make_plan
from devices.cost.model import Cost
from devices.vocabulary.plan import DeviceId, TermGrid, TrainingPlan, WeightFormat
from traces.arrays import BoolArray

RankRule = Literal["memory", "speed", "groups"]
"""The largest of several ranks that a device is granted, by the time of one step with all terms:
a device x times slower than the fleet's median gets the largest one divided by x (``speed``), or
the fleet is cut into equal groups (``groups``). ``memory`` grants everybody the largest."""


class Workload(NamedTuple):
    """A workload is how many terms a device can train, and which formats its blocks then have."""

    num_terms: int  # terms in each module
    formats_index: int

    @property
    def without_terms(self) -> Workload:
        """Return the workload of the head alone."""
        return self._replace(num_terms=0)


class TypicalCosts:
    """Typical costs are those of plans whose terms are counted and not chosen yet.

    Each is asked for once per profile.
    """

    def __init__(
        self,
        fleet: FleetView,
        formats: Sequence[Formats],
        *,
        rank: int,
        grid_of: Callable[[BoolArray], TermGrid],
        activation_bits: int = 32,
    ) -> None:
        """Take what makes a plan's term grid of the terms that are trained."""
        self._activation_bits = (activation_bits,) * fleet.model.num_blocks
        self._fleet, self._formats, self._grid_of = fleet, formats, grid_of
        self._shape = fleet.model.grid_shape(rank)
        self._known: dict[tuple[str, Workload], Cost] = {}
        self._fitting: dict[tuple[str, int, int], Workload | None] = {}

    def step_s(self, work: Workload) -> dict[DeviceId, float]:
        """Return, for each device of the fleet, the seconds of one step of a workload."""
        known: dict[str, float] = {}  # profile name -> seconds of a step
        found = {}
        for device_id in self._fleet.device_ids:
            profile = self._fleet.profile(device_id).name
            if profile not in known:
                known[profile] = sum(self(device_id, work).step)
            found[device_id] = known[profile]
        return found

    def __call__(self, device_id: DeviceId, work: Workload) -> Cost:
        key = (self._fleet.profile(device_id).name, work)
        if key not in self._known:
            trained = np.broadcast_to(np.arange(self._shape[2]) < work.num_terms, self._shape)
            formats = self._formats[work.formats_index]
            grid = self._grid_of(trained)
            plan = make_plan(self._fleet, device_id, grid, formats, self._activation_bits)
            self._known[key] = self._fleet.cost(plan)
        return self._known[key]

    def first_fitting(self, device_id: DeviceId, num_terms: int) -> Workload | None:
        """Return the first formats in which the device can hold ``num_terms``.

        Where it cannot in any, the most terms that it can hold in the last formats; None where it
        cannot hold one. Memory has to fall along the formats, and with the terms.
        """
        profile, budget_bytes = (
            self._fleet.profile(device_id).name,
            self._fleet.memory_budget_bytes(device_id),
        )
        key = (profile, budget_bytes, num_terms)
        if key not in self._fitting:
            self._fitting[key] = self._first_fitting(device_id, num_terms, budget_bytes)
        return self._fitting[key]

    def _first_fitting(
        self, device_id: DeviceId, num_terms: int, budget_bytes: int
    ) -> Workload | None:
        def fits(num_terms: int, index: int) -> bool:
            return self(device_id, Workload(num_terms, index)).memory.total <= budget_bytes

        last = len(self._formats) - 1
        if fits(num_terms, last):
            index = bisect_left(range(last), True, key=lambda index: fits(num_terms, index))
            return Workload(num_terms, index)
        fewer = range(num_terms - 1, 0, -1)
        place = bisect_left(fewer, True, key=lambda n: fits(n, last))
        return Workload(fewer[place], last) if place < len(fewer) else None


def truncated(trained: BoolArray) -> TermGrid:
    """Return a grid that holds, trains and uploads these terms; others are not on the device."""
    return TermGrid(trained, trained, np.where(trained, 32, 0).astype(np.uint8))


def first_terms(shape: tuple[int, int, int], num_terms: int) -> TermGrid:
    """Return a grid of the first ``num_terms`` of every module, and no other on the device."""
    return truncated(np.broadcast_to(np.arange(shape[2]) < num_terms, shape))


def plans_by_rank(
    fleet: FleetView, cohort: Sequence[DeviceId], ranks: Mapping[DeviceId, int], *, rank: int
) -> list[TrainingPlan]:
    """Return plans in which each device holds and trains its first ``ranks`` of ``rank`` terms.

    A device without a rank sits out.
    """
    shape = fleet.model.grid_shape(rank)
    return [make_plan(fleet, d, first_terms(shape, ranks[d])) for d in cohort if d in ranks]


def fitting_ranks(
    fleet: FleetView, ranks: Sequence[int], *, rank: int, rule: RankRule
) -> dict[DeviceId, int]:
    """Return, by device, the largest of ``ranks`` that the rule grants and its memory holds.

    One of them above ``rank`` means ``rank``. A device that cannot hold the smallest is absent.
    """
    tiers = sorted({min(tier, rank) for tier in ranks})
    unpacked: WeightFormat = "fp32"
    formats = [(unpacked,) * fleet.model.num_blocks]
    costs = TypicalCosts(fleet, formats, rank=rank, grid_of=truncated)
    granted = dict.fromkeys(fleet.device_ids, tiers[-1])
    if rule != "memory":
        step_s = costs.step_s(Workload(rank, 0))
        granted = (budgets_by_speed if rule == "speed" else budgets_by_group)(step_s, tiers)
    fitting = {}
    for device_id, most in granted.items():
        budget_bytes = fleet.memory_budget_bytes(device_id)
        for tier in tiers[: tiers.index(most) + 1]:
            if costs(device_id, Workload(tier, 0)).memory.total <= budget_bytes:
                fitting[device_id] = tier
    return fitting


def budgets_by_speed(
    step_s: Mapping[DeviceId, float], budgets: Sequence[int]
) -> dict[DeviceId, int]:
    """Return the largest budget divided by x for a device x times slower than the median.

    Rounded down to one of the ``budgets``, which rise; the smallest is for all.
    """
    median_s = float(np.median(list(step_s.values())))
    return {
        device_id: max(
            (b for b in budgets if b * own_s <= budgets[-1] * median_s), default=budgets[0]
        )
        for device_id, own_s in step_s.items()
    }


def budgets_by_group(
    step_s: Mapping[DeviceId, float], budgets: Sequence[int]
) -> dict[DeviceId, int]:
    """Return the largest budget for the fastest of equal groups, the smallest for the slowest."""
    from_fastest = sorted(step_s, key=lambda device_id: (step_s[device_id], device_id))
    groups = np.array_split(np.array(from_fastest), len(budgets))
    return {
        int(device_id): budget
        for budget, group in zip(reversed(budgets), groups, strict=True)
        for device_id in group
    }
