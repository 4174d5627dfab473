"""Stands in for the engine where a strategy is checked: devices that never change, and updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from algorithms.strategy import LinkRate
from devices.cost.model import Cost, CostModel
from devices.fleet.profile import DeviceProfile
from devices.models.spec import ModelSpec
from devices.vocabulary.plan import (
    Adapter,
    Broadcast,
    ClientUpdate,
    DeviceId,
    Factors,
    TermGrid,
    Timing,
    TrainingPlan,
    WeightFormat,
)
from devices.vocabulary.trainer import SalienceMetric
from traces.arrays import BoolArray, Float32Array, FloatArray


@dataclass(frozen=True)
class StaticDevice:
    """A static device is one whose properties never change."""

    profile: DeviceProfile
    memory_budget_bytes: int
    link: LinkRate
    num_examples: int
    local_steps: int = 1


class ModelCosts(CostModel, Protocol):
    """A cost model of one model's plans says which model that is."""

    @property
    def model(self) -> ModelSpec: ...


@dataclass(frozen=True, eq=False)
class StaticFleet:
    """A static fleet is a FleetView over devices that never change.

    ``devices`` is a mapping from ids, or a sequence, whose ids are the positions in it.
    ``salience`` is (L,), and None where all blocks count alike.
    """

    devices: Mapping[DeviceId, StaticDevice] | Sequence[StaticDevice]
    costs: ModelCosts
    _: KW_ONLY
    batch_size: int = 16
    proximal_mu: float = 0.0
    micro_batch: int | None = None
    weight_format: WeightFormat = "fp32"
    upload_bits: int = 32
    head_bits: int = 32
    salience: FloatArray | None = None
    _known: dict[tuple[bytes, str], Cost] = field(default_factory=dict, init=False, repr=False)

    @property
    def model(self) -> ModelSpec:
        return self.costs.model

    @cached_property
    def device_ids(self) -> Sequence[DeviceId]:
        devices = self.devices
        return tuple(sorted(devices) if isinstance(devices, Mapping) else range(len(devices)))

    def profile(self, device_id: DeviceId) -> DeviceProfile:
        return self.devices[device_id].profile

    def memory_budget_bytes(self, device_id: DeviceId) -> int:
        return self.devices[device_id].memory_budget_bytes

    def num_examples(self, device_id: DeviceId) -> int:
        return self.devices[device_id].num_examples

    def local_steps(self, device_id: DeviceId) -> int:
        return self.devices[device_id].local_steps

    def link(self, device_id: DeviceId) -> LinkRate:
        return self.devices[device_id].link

    def cost(self, plan: TrainingPlan) -> Cost:
        profile = self.profile(plan.device_id)
        key = (plan.workload, profile.name)
        if key not in self._known:
            self._known[key] = self.costs.cost(plan, profile)
        return self._known[key]

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        return self._saliences

    def block_fisher(self, adapter: Adapter) -> FloatArray:
        return self._saliences

    @cached_property
    def _saliences(self) -> FloatArray:
        return np.ones(self.model.num_blocks) if self.salience is None else self.salience


def lasting(terms: TermGrid) -> BoolArray:
    """Return (L, M, R): the terms whose training outlasts the round.

    These are the uploaded ones, or all trained ones where nothing crosses the wire.
    """
    return terms.uploaded if terms.crosses_wire else terms.trained


def trained_update(
    plan: TrainingPlan,
    broadcast: Broadcast,
    rng: np.random.Generator,
    *,
    num_examples: int = 1,
    timing: Timing | None = None,
) -> ClientUpdate:
    """Return an update with noise added to the head and to all terms whose training lasts."""
    start = broadcast.adapter
    factors = {}
    for key, (a, b) in start.factors.items():
        sent = lasting(plan.terms)[key.block, start.modules.index(key.module)]  # (R,)
        sent_a, sent_b = (sent & (name in plan.terms.trained_factors) for name in ("a", "b"))
        factors[key] = Factors(
            np.where(sent_a[:, None], a + _noise(a.shape, rng), a),
            np.where(sent_b, b + _noise(b.shape, rng), b),
        )
    head = {name: values + _noise(values.shape, rng) for name, values in start.head.items()}
    trained = replace(start, factors=factors, head=head)
    timing = timing or Timing(0.0, 0.0, 0.0)
    return update_with(trained, plan, broadcast, num_examples=num_examples, timing=timing)


def update_with(
    trained: Adapter,
    plan: TrainingPlan,
    broadcast: Broadcast,
    *,
    num_examples: int,
    timing: Timing,
) -> ClientUpdate:
    """Return the update of a device whose adapter, after its training, is ``trained``."""
    if plan.terms.sends_head:
        # The checks need a control variate of the right shapes, whatever its values.
        control = trained if plan.terms.has_controls else None
        return ClientUpdate(plan, broadcast, trained, num_examples, 1.0, timing, control=control)
    # A factor that is not sent stands in the update as it was broadcast.
    start = broadcast.adapter
    factors = {key: Factors(a, start.factors[key].b) for key, (a, _) in trained.factors.items()}
    sent = replace(start, factors=factors) if plan.terms.crosses_wire else start
    return ClientUpdate(plan, broadcast, sent, num_examples, 1.0, timing, own=trained)


def spoil(adapter: Adapter, plan: TrainingPlan) -> Adapter:
    """Return the adapter with a million in place of all that the plan does not upload."""
    factors, million = {}, np.float32(1e6)
    for key, (a, b) in adapter.factors.items():
        sent = plan.terms.uploaded[key.block, adapter.modules.index(key.module)]
        sent_a, sent_b = (sent & (name in plan.terms.uploaded_factors) for name in ("a", "b"))
        factors[key] = Factors(np.where(sent_a[:, None], a, million), np.where(sent_b, b, million))
    head = {
        name: values if plan.terms.sends_head else np.full_like(values, million)
        for name, values in adapter.head.items()
    }
    return replace(adapter, factors=factors, head=head)


def _noise(shape: tuple[int, ...], rng: np.random.Generator) -> Float32Array:
    return rng.normal(0.0, 1.0, shape).astype(np.float32)
