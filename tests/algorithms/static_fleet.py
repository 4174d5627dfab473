"""A fleet that never changes and a cost model that fits on a page, to test strategies on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from algorithms.strategy import LinkRate
from devices.cost.model import Cost, CostModel, MemoryBreakdown, StepTime
from devices.fleet.profile import DeviceProfile
from devices.models.spec import ModelSpec
from devices.vocabulary.plan import (
    Adapter,
    Broadcast,
    ClientUpdate,
    DeviceId,
    Factors,
    Timing,
    TrainingPlan,
)
from devices.vocabulary.trainer import SalienceMetric
from traces.arrays import Float32Array, FloatArray

FORMAT_BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0625, "int4": 0.5625, "nf4": 0.53125}
"""Bytes a weight: packed formats carry 4 bytes (nf4: 2) per group of 64."""


@dataclass(frozen=True)
class ClosedFormCost:
    """Costs of a plan, linear in everything that a plan can change.

    Peak: frozen weights at their formats + 4 bytes a held parameter + 12 a trained one (gradient
    and AdamW's moments) + what crossed blocks save + one block as computed.
    Step: L forward + d backward + a packing, in units of one block's forward time.
    """

    model: ModelSpec
    block_flops: float  # one block's forward pass on one batch
    activation_bytes: int  # saved by one crossed block, unpacked
    fixed_bytes: int = 0  # embedding, head, runtime
    head_s: float = 0.0
    backward_share: float = 1.1  # of one block's forward time
    quantize_share: float = 0.25
    packed_share: Mapping[int, float] = field(
        default_factory=lambda: {32: 1.0, 8: 0.27, 4: 0.155, 0: 0.08}
    )
    transient_blocks: int = 1  # blocks held as computed while packed ones are at work

    def cost(self, plan: TrainingPlan, profile: DeviceProfile) -> Cost:
        plan = plan.compact()
        term_size = np.array([t.in_features + t.out_features for t in self.model.targets])
        sizes = term_size[None, :, None]  # (1, M, 1)
        held = int((plan.terms.held * sizes).sum()) + self.model.head_parameters
        trained = int((plan.terms.trained * sizes).sum()) + self.model.head_parameters
        upload_bits = int((plan.terms.upload_bits * sizes).sum()) + 32 * self.model.head_parameters
        step = self._step(plan, profile)
        train_s = plan.local_steps * sum(step)
        return Cost(
            download_bytes=4 * held,
            upload_bytes=-(-upload_bits // 8),
            flops=plan.local_steps * self.block_flops * plan.num_blocks,
            memory=self._memory(plan, held, trained),
            step=step,
            train_s=train_s,
            compute_j=train_s * profile.power_w["compute"],
        )

    def _memory(self, plan: TrainingPlan, held: int, trained: int) -> MemoryBreakdown:
        crossed = plan.activation_bits[plan.num_blocks - plan.depth :]
        block_weights = sum(layer.num_weights for layer in self.model.linears)
        weights = sum(block_weights * FORMAT_BYTES[name] for name in plan.weight_formats)
        transient = self.transient_blocks if any(bits < 32 for bits in crossed) else 0
        return MemoryBreakdown(
            weights=int(weights) + self.fixed_bytes,
            adapters=4 * held,
            gradients=4 * trained,
            optimizer=8 * trained,
            activations=int(
                self.activation_bytes * sum(map(self.packed_share.__getitem__, crossed))
            ),
            transient=transient * self.activation_bytes,
            head=0,
        )

    def _step(self, plan: TrainingPlan, profile: DeviceProfile) -> StepTime:
        block_s = self.block_flops / profile.flops_per_s[32]
        return StepTime(
            forward_s=plan.num_blocks * block_s + self.head_s,
            backward_s=plan.depth * self.backward_share * block_s,
            quantize_s=plan.num_quantized_blocks * self.quantize_share * block_s,
            optimizer_s=0.0,
            overhead_s=profile.overhead_s,
        )


@dataclass(frozen=True)
class StaticDevice:
    """What the fleet says of one device."""

    profile: DeviceProfile
    memory_budget_bytes: int
    link: LinkRate
    num_examples: int
    local_steps: int = 1


class ModelCosts(CostModel, Protocol):
    """Costs of one model's plans."""

    @property
    def model(self) -> ModelSpec: ...


class StaticFleet:
    """A FleetView over fixed devices. ``num_costed`` counts the plans that had to be costed."""

    def __init__(
        self,
        devices: Mapping[DeviceId, StaticDevice] | Sequence[StaticDevice],
        costs: ModelCosts,
        *,
        batch_size: int = 16,
        proximal_mu: float = 0.0,
        salience: FloatArray | None = None,
    ) -> None:
        named = devices if isinstance(devices, Mapping) else dict(enumerate(devices))
        self._devices = dict(sorted(named.items()))
        self._costs = costs
        self._batch_size = batch_size
        self._proximal_mu = proximal_mu
        self._salience = np.ones(costs.model.num_blocks) if salience is None else salience
        self._known: dict[tuple[bytes, str], Cost] = {}

    @property
    def model(self) -> ModelSpec:
        return self._costs.model

    @property
    def batch_size(self) -> int:
        return self._batch_size

    @property
    def proximal_mu(self) -> float:
        return self._proximal_mu

    @property
    def device_ids(self) -> Sequence[DeviceId]:
        return tuple(self._devices)

    @property
    def num_costed(self) -> int:
        """Distinct (work, profile) pairs that were asked for."""
        return len(self._known)

    def profile(self, device_id: DeviceId) -> DeviceProfile:
        return self._devices[device_id].profile

    def memory_budget_bytes(self, device_id: DeviceId) -> int:
        return self._devices[device_id].memory_budget_bytes

    def num_examples(self, device_id: DeviceId) -> int:
        return self._devices[device_id].num_examples

    def local_steps(self, device_id: DeviceId) -> int:
        return self._devices[device_id].local_steps

    def link(self, device_id: DeviceId) -> LinkRate:
        return self._devices[device_id].link

    def cost(self, plan: TrainingPlan) -> Cost:
        profile = self.profile(plan.device_id)
        key = (plan.workload, profile.name)
        if key not in self._known:
            self._known[key] = self._costs.cost(plan, profile)
        return self._known[key]

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        return self._salience


def device_profile(name: str, flops_per_s: float = 1e9, memory_bytes: int = 2**30) -> DeviceProfile:
    """A device of the given speed at either operand width."""
    return DeviceProfile(
        name=name,
        title=name,
        tier="test",
        flops_per_s={32: flops_per_s, 16: flops_per_s},
        memory_bytes=memory_bytes,
        memory_bytes_per_s=1e9,
        overhead_s=0.0,
        power_w={"idle": 1.0, "compute": 5.0, "radio": 2.0},
        confidence="low",
        source="made up",
    )


def bert(num_blocks: int, hidden: int, *, num_classes: int = 3) -> ModelSpec:
    """A BERT with LoRA on query and value."""
    config = {
        "model_type": "bert",
        "num_hidden_layers": num_blocks,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_attention_heads": 2,
        "vocab_size": 100,
        "max_position_embeddings": 32,
    }
    return ModelSpec.from_config("test-bert", config, ["query", "value"], num_classes)


def random_adapter(model: ModelSpec, rank: int, rng: np.random.Generator) -> Adapter:
    """An adapter in which no number is zero."""
    start = model.initial_adapter(rank, alpha=16.0, rng=rng)
    factors = {
        key: Factors(_noise(f.a.shape, rng), _noise(f.b.shape, rng))
        for key, f in start.factors.items()
    }
    head = {name: _noise(values.shape, rng) for name, values in start.head.items()}
    return replace(start, factors=factors, head=head)


def trained_update(
    plan: TrainingPlan,
    broadcast: Broadcast,
    rng: np.random.Generator,
    *,
    num_examples: int = 1,
    timing: Timing | None = None,
) -> ClientUpdate:
    """What a device sends back: noise added to the head and to all that it uploads of its terms."""
    start = broadcast.adapter
    factors = {}
    for key, (a, b) in start.factors.items():
        sent = plan.terms.uploaded[key.block, start.modules.index(key.module)]  # (R,)
        sent_a = sent & ("a" in plan.terms.trained_factors)
        factors[key] = Factors(
            np.where(sent_a[:, None], a + _noise(a.shape, rng), a),
            np.where(sent, b + _noise(b.shape, rng), b),
        )
    head = {name: values + _noise(values.shape, rng) for name, values in start.head.items()}
    adapter = replace(start, factors=factors, head=head)
    timing = timing or Timing(0.0, 0.0, 0.0)
    return ClientUpdate(plan, broadcast, adapter, num_examples, 1.0, timing)


def spoil(adapter: Adapter, plan: TrainingPlan) -> Adapter:
    """A million in place of everything that the plan does not upload."""
    factors = {}
    for key, (a, b) in adapter.factors.items():
        sent = plan.terms.uploaded[key.block, adapter.modules.index(key.module)]
        sent_a = sent & ("a" in plan.terms.trained_factors)
        million = np.float32(1e6)
        factors[key] = Factors(np.where(sent_a[:, None], a, million), np.where(sent, b, million))
    return replace(adapter, factors=factors)


def _noise(shape: tuple[int, ...], rng: np.random.Generator) -> Float32Array:
    return rng.normal(0.0, 1.0, shape).astype(np.float32)
