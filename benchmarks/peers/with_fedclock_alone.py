"""FedClock in one process, which imports torch, transformers and peft as the loop does."""

from __future__ import annotations

from devices.training import trainer  # noqa: F401
from peers.with_fedclock import train

__all__ = ["train"]
