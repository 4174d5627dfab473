"""What several tests know of the schedulers, by their kinds."""

from __future__ import annotations

WHOLE = (
    "fedlora",
    "ffa-lora",
    "fedex-lora",
    "lora-fair",
    "rolora",
    "fedsa-lora",
    "scaffold",
    "local-only",
    "centralized",
)
"""Those that take no heed of a device's memory: unless told to, they train the same on all."""
