"""What one kind of device is: rates, memory and power."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

Activity = Literal["idle", "compute", "radio"]
ComputeBits = Literal[32, 16]
Confidence = Literal["high", "medium", "low"]
CONFIDENCES: tuple[Confidence, ...] = get_args(Confidence)  # best first


class StepRates(NamedTuple):
    """What the parts of a training step go at, fitted to steps that were timed: the seconds of a
    step are the sum of each part over its rate. Not to be compared with a profile's sustained
    rates, which hold where arithmetic and memory traffic hide each other."""

    flops_per_s: float
    memory_bytes_per_s: float
    cast_bytes_per_s: float  # weights of 32, 16 and 8 bits, at another width than the products'
    unpack_bytes_per_s: float  # weights of 4 bits
    pack_bytes_per_s: float  # activations, both ways
    overhead_s: float


@dataclass(frozen=True)
class DeviceProfile:
    """One device kind in one power mode. ``source`` and ``confidence`` say where it comes from."""

    name: str  # "jetson-tx2-maxq"
    title: str  # "NVIDIA Jetson TX2 8 GB, Max-Q"
    tier: str  # "jetson", "raspberry-pi", "phone-high", ...
    flops_per_s: Mapping[int, float]  # sustained in training, by operand width in bits (32, 16)
    memory_bytes: int  # what the box has; the fleet says which share of it training may use
    memory_bytes_per_s: float  # sustained
    overhead_s: float  # fixed cost of one training step: kernel launches, data loading
    power_w: Mapping[Activity, float]
    confidence: Confidence
    source: str
    measured: Mapping[int, StepRates] | None = None  # by operand width, of a calibrated device
