"""This module holds what several tests know of the schedulers, by their kinds."""

from __future__ import annotations

from algorithms.registry import REFERENCES, STRATEGIES

FEDERATED = tuple(kind for kind in STRATEGIES if kind not in REFERENCES)
"""The strategies whose devices send something that a global model is made of."""

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
"""The strategies that take no heed of a device's memory: unless told to, all train alike."""
