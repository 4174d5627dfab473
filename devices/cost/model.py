"""Defines what a plan costs: bytes, FLOPs, memory, and seconds and joules on a device."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple, Protocol

from devices.fleet.profile import DeviceProfile
from devices.vocabulary.plan import TrainingPlan


@dataclass(frozen=True)
class MemoryBreakdown:
    """A memory breakdown holds the bytes at the peak of a training step, by part."""

    weights: int  # frozen base weights in their formats, with embedding and pooler
    adapters: int  # held terms and head; initial parameters of a proximal loss; control variates
    gradients: int  # gradients of trained terms and head
    optimizer: int  # state of the optimizer, such as AdamW's two fp32 moments
    activations: int  # saved for the backward pass, packed where planned
    transient: int  # temporary tensors of one block while its forward or backward pass runs
    head: int  # logits, loss and what the head saves

    @cached_property
    def total(self) -> int:
        """Return the bytes of all parts, which is the peak."""
        return sum(getattr(self, part.name) for part in fields(self))


class StepTime(NamedTuple):
    """A step time holds the seconds of one training step, by phase."""

    forward_s: float
    backward_s: float
    quantize_s: float  # packing and unpacking of weights and activations
    optimizer_s: float
    overhead_s: float


@dataclass(frozen=True)
class Cost:
    """A cost is that of one plan on one device, without the time of its transfers."""

    download_bytes: int
    upload_bytes: int
    flops: float  # total of all local steps
    memory: MemoryBreakdown
    step: StepTime
    train_s: float  # total of all local steps
    compute_j: float  # energy drawn while training


class CostModel(Protocol):
    """A cost model gives the cost of any plan on any device, before it is trained.

    Costs are a function of the plan and the profile alone: equal arguments give equal costs, and
    the ``device_id`` of a plan does not matter. ``download_bytes`` and ``upload_bytes`` are the
    lengths of the real messages. Seconds are those of a device at its full speed with nothing else
    to do; the engine applies speed traces, outages and links to them.
    """

    def cost(self, plan: TrainingPlan, profile: DeviceProfile) -> Cost:
        """Return the cost of a plan on a device.

        Raises ValueError where the model cannot tell, for example where the profile has no rate at
        the operand width.
        """
        ...
