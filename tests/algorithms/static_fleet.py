"""This module holds a cost model that fits on a page, and the static fleet that tests use with
it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from algorithms.static_fleet import ModelCosts as ModelCosts
from algorithms.static_fleet import StaticDevice as StaticDevice
from algorithms.static_fleet import StaticFleet as StaticFleet
from algorithms.static_fleet import spoil as spoil
from algorithms.static_fleet import trained_update as trained_update
from devices.cost.model import Cost, MemoryBreakdown, StepTime
from devices.fleet.profile import DeviceProfile
from devices.models.heads import text_head
from devices.models.spec import ModelSpec
from devices.vocabulary.plan import Adapter, Factors, TrainingPlan
from traces.arrays import Float32Array

FORMAT_BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0625, "int4": 0.5625, "nf4": 0.53125}
"""Bytes a weight: packed formats carry 4 bytes (nf4: 2) per group of 64."""


@dataclass(frozen=True)
class ClosedFormCost:
    """These costs of a plan are linear in everything that a plan can change.

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
    transient_blocks: int = 1  # blocks whose tensors are held unpacked during their passes

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


def bert(num_blocks: int, hidden: int, *, num_classes: int = 3) -> ModelSpec:
    """Return the spec of a BERT with LoRA on query and value."""
    config = {
        "model_type": "bert",
        "num_hidden_layers": num_blocks,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_attention_heads": 2,
        "vocab_size": 100,
        "max_position_embeddings": 32,
    }
    return ModelSpec.from_config("test-bert", config, ["query", "value"], text_head(num_classes))


def device_profile(name: str, flops_per_s: float = 1e9, memory_bytes: int = 2**30) -> DeviceProfile:
    """Return a profile of the given speed at either operand width."""
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


def random_adapter(model: ModelSpec, rank: int, rng: np.random.Generator) -> Adapter:
    """Return an adapter in which no number is zero."""
    start = model.initial_adapter(rank, alpha=16.0, rng=rng)
    factors = {
        key: Factors(noise(f.a.shape, rng), noise(f.b.shape, rng))
        for key, f in start.factors.items()
    }
    head = {name: noise(values.shape, rng) for name, values in start.head.items()}
    return replace(start, factors=factors, head=head)


def noise(shape: tuple[int, ...], rng: np.random.Generator) -> Float32Array:
    return rng.normal(0.0, 1.0, shape).astype(np.float32)
