"""What one kind of device is: rates, memory and power."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Activity = Literal["idle", "compute", "radio"]
ComputeBits = Literal[32, 16]


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
    confidence: Literal["high", "medium", "low"]
    source: str
