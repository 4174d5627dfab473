"""What a plan costs: bytes, FLOPs and memory in closed form, seconds and joules on a profile."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple, Protocol

from devices.fleet.profile import DeviceProfile
from devices.vocabulary.plan import TrainingPlan


@dataclass(frozen=True)
class MemoryBreakdown:
    """Bytes held at the peak of a training step, by part."""

    weights: int  # frozen base weights at their formats, embedding and pooler included
    adapters: int  # held terms and head, and where a proximal loss started from
    gradients: int  # of trained terms and head
    optimizer: int  # AdamW: two fp32 moments
    activations: int  # saved for the backward pass, packed where planned
    transient: int  # one block as computed, while its forward or backward pass runs
    head: int  # logits, loss and what the head saves

    @cached_property
    def total(self) -> int:
        """The peak."""
        return sum(getattr(self, part.name) for part in fields(self))


class StepTime(NamedTuple):
    """Seconds of one training step, by phase."""

    forward_s: float
    backward_s: float
    quantize_s: float  # packing and unpacking of weights and activations
    optimizer_s: float
    overhead_s: float


@dataclass(frozen=True)
class Cost:
    """What one plan costs on one device, before the network."""

    download_bytes: int
    upload_bytes: int
    flops: float  # of all local steps
    memory: MemoryBreakdown
    step: StepTime
    train_s: float  # of all local steps
    compute_j: float  # energy drawn while training


class CostModel(Protocol):
    """Costs follow from the plan and the profile alone, so they are known before training."""

    def cost(self, plan: TrainingPlan, profile: DeviceProfile) -> Cost: ...
