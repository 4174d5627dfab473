"""How jobs are trained: numbers alone, which whoever hands them on can read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from devices.models.spec import Attention

HostDtype = Literal["auto", "bf16", "fp32"]
HostCompute = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class TrainingConfig:
    """How every job of a run is trained, and how the global model is tested."""

    model: str
    targets: tuple[str, ...]
    learning_rate: float
    weight_decay: float = 0.01
    max_length: int = 32  # tokens; longer texts are cut
    dtype: HostDtype = "auto"
    compute: HostCompute = "auto"
    attention: Attention = "eager"  # on short texts in bf16, sdpa takes twice as long
    eval_examples: int = 400
    max_loss: float = 10_000.0  # a larger one counts as diverged
    eval_batch_size: int = 50  # larger ones fall out of the cache
