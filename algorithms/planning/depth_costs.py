"""Works out what each depth costs each device: least quantization, seconds and bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from algorithms.strategy import FleetView, LinkRate
from devices.vocabulary.plan import DeviceId, Timing, TrainingPlan
from traces.arrays import FloatArray, IntArray


class Work(NamedTuple):
    """A configuration trains the top ``depth`` blocks, with ``quantized`` of them packed."""

    depth: int
    quantized: int


class WorkCost(NamedTuple):
    """A work cost holds the memory, seconds and bytes of one configuration on one profile."""

    peak_bytes: int
    step_s: float
    download_bytes: int
    upload_bytes: int


class DepthMenu(NamedTuple):
    """A menu holds (L,) costs: depth d at index d - 1, with the least quantization that fits."""

    quantized: IntArray  # packed blocks, -1 where a depth does not fit at all
    step_s: FloatArray  # seconds of one step, inf where the depth does not fit
    download_bytes: FloatArray
    upload_bytes: FloatArray


NOT_HELD = (-1, math.inf, 0, 0)
"""The row of a DepthMenu for a depth that does not fit."""


class DepthCosts:
    """Depth costs are worked out once for each profile and memory budget of a decision."""

    def __init__(
        self,
        fleet: FleetView,
        plan_of: Callable[[Work], TrainingPlan],
        most_quantized: Callable[[int], int],
    ) -> None:
        """Take a builder of one-step plans and the limit of quantized blocks of each depth."""
        self._fleet, self._plan_of, self._most_quantized = fleet, plan_of, most_quantized
        self._plans: dict[Work, TrainingPlan] = {}
        self._costs: dict[str, dict[Work, WorkCost]] = {}  # by the name of the profile
        self._menus: dict[tuple[str, int], DepthMenu] = {}

    def plan(self, work: Work) -> TrainingPlan:
        """Return the plan of a configuration, for no device in particular."""
        if work not in self._plans:
            self._plans[work] = self._plan_of(work)
        return self._plans[work]

    def cost(self, device_id: DeviceId, work: Work) -> WorkCost:
        """Return the costs of a configuration on a device, by the cost model."""
        known = self._costs.setdefault(self._fleet.profile(device_id).name, {})
        if work not in known:
            cost = self._fleet.cost(self.plan(work).on(device_id))
            known[work] = WorkCost(
                cost.memory.total, cost.train_s, cost.download_bytes, cost.upload_bytes
            )
        return known[work]

    def menu(self, device_id: DeviceId) -> DepthMenu:
        """Return, by depth, the fewest quantized blocks whose peak is within the device's budget.

        More than the fewest only adds time and noise. One walk finds them all, since the peak never
        falls with depth: what was too little for one depth is too little for the next.
        """
        budget = self._fleet.memory_budget_bytes(device_id)
        profile = self._fleet.profile(device_id).name
        key = (profile, budget)
        if key not in self._menus:
            known = self._costs.setdefault(profile, {})
            rows, quantized = [], 0
            for depth in range(1, self._fleet.model.num_blocks + 1):
                most = self._most_quantized(depth)
                while quantized <= most:
                    work = Work(depth, quantized)
                    cost = known.get(work) or self.cost(device_id, work)
                    if cost.peak_bytes <= budget:
                        break
                    quantized += 1
                rows.append((quantized, *cost[1:]) if quantized <= most else NOT_HELD)
            columns = np.array(rows, dtype=np.float64).T
            self._menus[key] = DepthMenu(columns[0].astype(np.int64), *columns[1:])
        return self._menus[key]


@dataclass(frozen=True)
class Measured:
    """Measures are the weighted seconds of a device's rounds.

    The last round counts ``smoothing``, each before it ``1 - smoothing`` times its successor.
    The server learns a round's seconds when it has no prediction at hand, so it keeps which
    configurations they were spent on. Predicting the same mix later makes the two comparable.
    """

    # The weights of the configurations, which sum to 1 - (1 - smoothing)^rounds.
    mix: Mapping[Work, float]
    step_s: float
    download_s: float
    upload_s: float

    @classmethod
    def nothing(cls) -> Measured:
        """Return what is known before the first round."""
        return cls({}, 0.0, 0.0, 0.0)

    def add(self, work: Work, local_steps: int, timing: Timing, smoothing: float) -> Measured:
        """Return the measures after one more round; one with a phase of no time is left out."""
        if min(timing) <= 0:
            return self
        kept = 1 - smoothing
        mix = {known: kept * weight for known, weight in self.mix.items()}
        mix[work] = mix.get(work, 0.0) + smoothing
        return Measured(
            mix,
            kept * self.step_s + smoothing * timing.train_s / local_steps,
            kept * self.download_s + smoothing * timing.download_s,
            kept * self.upload_s + smoothing * timing.upload_s,
        )


class Pace(NamedTuple):
    """A pace is the estimate of how fast a device trains and transfers now."""

    train_ratio: float  # training seconds for each second that the cost model predicts
    link: LinkRate


def estimated_pace(costs: DepthCosts, device_id: DeviceId, prior: Pace, seen: Measured) -> Pace:
    """Return the prior blended with what was measured: mu <- (1 - beta) mu + beta x a round."""
    if not seen.mix:
        return prior
    step_s = download_bytes = upload_bytes = 0.0
    for work, weight in seen.mix.items():
        _, own_step_s, own_download_bytes, own_upload_bytes = costs.cost(device_id, work)
        step_s += weight * own_step_s
        download_bytes += weight * own_download_bytes
        upload_bytes += weight * own_upload_bytes
    trust = sum(seen.mix.values())

    def blend(before: float, measured: float) -> float:
        return (1 - trust) * before + trust * measured

    return Pace(
        blend(prior.train_ratio, seen.step_s / step_s),
        LinkRate(
            blend(prior.link.down_bytes_per_s, download_bytes / seen.download_s),
            blend(prior.link.up_bytes_per_s, upload_bytes / seen.upload_s),
        ),
    )


def round_times(
    fleet: FleetView,
    costs: DepthCosts,
    cohort: Sequence[DeviceId],
    measured: Mapping[DeviceId, Measured] = MappingProxyType({}),
) -> tuple[list[DeviceId], FloatArray]:
    """Return the devices that can hold some depth, and (N, L) the seconds of a round at each.

    These are at the devices' registered speed and last measured rates, corrected by what was
    ``measured``, and inf where a depth does not fit.
    """
    # id of a menu -> its index and the menu; few of a cohort's menus are distinct objects.
    menus: dict[int, tuple[int, DepthMenu]] = {}
    able, index, paces = [], [], []
    for device_id in cohort:
        menu = costs.menu(device_id)
        place, _ = menus.setdefault(id(menu), (len(menus), menu))
        pace = Pace(1.0, fleet.link(device_id))
        if (seen := measured.get(device_id)) is not None:
            pace = estimated_pace(costs, device_id, pace, seen)
        steps_share = fleet.local_steps(device_id) * pace.train_ratio
        able.append(device_id)
        index.append(place)
        paces.append((steps_share, *pace.link))
    if not able:
        return [], np.zeros((0, fleet.model.num_blocks))
    columns = [
        np.array(column) for column in zip(*(menu for _, menu in menus.values()), strict=True)
    ]
    quantized, step_s, download_bytes, upload_bytes = (column[index] for column in columns)
    ratio, down, up = np.array(paces).T[:, :, None]
    round_s = ratio * step_s + download_bytes / down + upload_bytes / up
    holds = (quantized >= 0).any(axis=1)
    return [able[row] for row in np.flatnonzero(holds).tolist()], round_s[holds]
