"""Holds the settings of training, as plain numbers that can be read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from devices.models.spec import Attention

HostDtype = Literal["auto", "bf16", "fp32"]
"""The type of the host's matrix products; ``auto`` is bf16 where that is fast."""
HostCompute = Literal["auto", "cpu", "cuda"]
"""The device that the host computes on; ``auto`` is a GPU where there is one."""


@dataclass(frozen=True)
class TrainingConfig:
    """The settings by which every job of a run is trained and the global model is tested."""

    model: str
    targets: tuple[str, ...]  # names of the adapted layers of a block
    learning_rate: float
    weight_decay: float = 0.01
    max_length: int = 32  # tokens; longer texts are cut
    dtype: HostDtype = "auto"
    compute: HostCompute = "auto"
    attention: Attention = "eager"  # on short texts in bf16, sdpa takes twice as long
    eval_examples: int = 400
    max_loss: float = 10_000.0  # a larger one counts as diverged
    eval_batch_size: int = 50  # larger ones fall out of the cache
    revision: str | None = None  # of a model on the hub
