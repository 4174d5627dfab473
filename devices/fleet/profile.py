"""Describes one kind of device: its rates, memory and power."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

Activity = Literal["idle", "compute", "radio"]
ComputeBits = Literal[32, 16]
Confidence = Literal["high", "medium", "low"]
CONFIDENCES: tuple[Confidence, ...] = get_args(Confidence)
"""How far the figures of a profile can be trusted, best first."""


class StepRates(NamedTuple):
    """Step rates are those of the parts of a training step, fitted to steps that were timed.

    The seconds of a step are the sum of each part over its rate, plus the overhead. The sustained
    rates of a profile are another model, in which arithmetic and memory traffic overlap, and so
    must not be compared with these.
    """

    flops_per_s: float
    memory_bytes_per_s: float
    cast_bytes_per_s: float  # conversion of weights of 32, 16 and 8 bits to the operand width
    unpack_bytes_per_s: float  # conversion of weights of 4 bits
    pack_bytes_per_s: float  # packing and unpacking of activations
    overhead_s: float


@dataclass(frozen=True)
class DeviceProfile:
    """A device profile holds the figures of one kind of device in one power mode."""

    name: str  # such as "jetson-tx2-maxq"
    title: str  # such as "NVIDIA Jetson TX2 8 GB, Max-Q"
    tier: str  # such as "jetson", "raspberry-pi" or "phone-high"
    flops_per_s: Mapping[int, float]  # sustained in training, by operand width in bits (32, 16)
    memory_bytes: int  # of the whole device; the fleet says which share of it training may use
    memory_bytes_per_s: float  # sustained in training
    overhead_s: float  # fixed cost of one training step: kernel launches, data loading
    power_w: Mapping[Activity, float]  # of the whole device
    confidence: Confidence
    source: str  # the sources of all figures
    measured: Mapping[int, StepRates] | None = None  # by operand width, of a calibrated device
    # The memory that the framework takes before a model is loaded. It is left out of the text of a
    # profile, from which the hash of the conditions is made, since that hash has the budgets.
    runtime_bytes: int = field(default=0, repr=False)
    # By format of the frozen weights: the factor on the time of a block's passes, 1 for a format
    # that is not named. The hash of the conditions includes it where it names any.
    format_time: Mapping[str, float] = field(default_factory=dict, repr=False)
