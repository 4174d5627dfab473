"""Trains by FedClock in one process, with torch, transformers and peft imported as in the loop."""

from __future__ import annotations

from devices.training import trainer  # noqa: F401
from peers.with_fedclock import train

__all__ = ["train"]
