"""On the devices' side of the wire, what was sent arrives whole, and leads to the model it was cut
from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from devices.models.spec import ModelSpec
from devices.vocabulary.merged import multiplied_out
from devices.vocabulary.plan import Adapter, DeviceId, Factors, ModuleKey, TrainingPlan
from devices.vocabulary.trainer import TrainingJob
from devices.wire.wire import Received, decode_broadcast, encode_broadcast
from traces.arrays import BoolArray, Float32Array, FloatArray

Base = Mapping[ModuleKey, FloatArray]
"""What was added to the frozen weights, without the scale; a layer may be absent."""


@dataclass
class Arrivals:
    """Arrivals take each job's broadcast off the wire, as its device would."""

    model: ModelSpec
    downloaded_bytes: list[int] = field(default_factory=list)
    bases: dict[DeviceId, list[Base]] = field(default_factory=lambda: defaultdict(lambda: [{}]))

    def check(self, job: TrainingJob) -> None:
        """Fail where a number that was sent is not there, or leads to another model."""
        sent, plan = job.broadcast, job.plan
        message = encode_broadcast(sent, plan=plan)
        drawn = without_downloaded(sent.adapter, plan)
        got = decode_broadcast(message, self.model, plan=plan, drawn=drawn)
        self.downloaded_bytes.append(len(message))
        for key, factors in sent.adapter.factors.items():
            held = held_terms(plan, key, sent.adapter)
            np.testing.assert_array_equal(got.adapter.factors[key].a[held], factors.a[held])
            np.testing.assert_array_equal(got.adapter.factors[key].b[:, held], factors.b[:, held])
        for name, values in sent.adapter.head.items():
            np.testing.assert_array_equal(got.adapter.head[name], values)
        if sent.controls:
            assert got.control is not None
            for key, (a, b) in sent.controls.everybody.factors.items():
                held = held_terms(plan, key, sent.adapter)
                np.testing.assert_array_equal(got.control.factors[key].a[held], a[held])
                np.testing.assert_array_equal(got.control.factors[key].b[:, held], b[:, held])
            for name, values in sent.controls.everybody.head.items():
                np.testing.assert_array_equal(got.control.head[name], values)
        self._check_base(job, got)

    def _check_base(self, job: TrainingJob, got: Received) -> None:
        """Check that a base that the device has had, and the broadcast, lead to that of now."""
        wanted = {
            key: multiplied_out(product)
            for key, product in job.broadcast.adapter.merged.products.items()
        }
        bases = self.bases[job.plan.device_id]
        assert any(is_close(after(base, got), wanted) for base in bases)
        bases.append(wanted)


def after(base: Base, got: Received) -> Base:
    """Return the base with what was merged meanwhile: factors add to it, a matrix replaces it."""
    moved = dict(base)
    for key, product in got.missed.items():
        is_all = not isinstance(product, Factors)
        before = 0.0 if is_all or key not in base else base[key]
        moved[key] = before + multiplied_out(product)
    return moved


def is_close(base: Base, wanted: Base) -> bool:
    """Return whether two are equal up to the rounding of a sum that is kept in float32."""
    return base.keys() == wanted.keys() and all(
        np.abs(base[key] - wanted[key]).max() <= 1e-5 * max(1e-3, np.abs(wanted[key]).max())
        for key in wanted
    )


def held_terms(plan: TrainingPlan, key: ModuleKey, adapter: Adapter) -> BoolArray:
    """Return the terms of a layer that the device holds, (R,)."""
    held: BoolArray = plan.terms.held[key.block, adapter.modules.index(key.module)]
    return held


def without_downloaded(adapter: Adapter, plan: TrainingPlan) -> Adapter:
    """Return what a device has before the message comes: what it draws or has kept, and zeros."""

    def left(name: str, values: Float32Array) -> Float32Array:
        return np.zeros_like(values) if name in plan.terms.downloaded_factors else values

    factors = {key: Factors(left("a", a), left("b", b)) for key, (a, b) in adapter.factors.items()}
    if not plan.terms.sends_head:
        return replace(adapter, factors=factors)
    head = {name: np.zeros_like(values) for name, values in adapter.head.items()}
    return replace(adapter, factors=factors, head=head)
