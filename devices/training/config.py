"""Holds the settings of training, as plain numbers that can be read without torch."""

from __future__ import annotations

from dataclasses import dataclass

from devices.options import TrainingOptions


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(TrainingOptions):
    """The settings by which every job of a run is trained and the global model is tested."""

    model: str
    targets: tuple[str, ...]  # names of the adapted layers of a block
    max_length: int = 32  # tokens; longer texts are cut
    eval_examples: int = 400
    eval_batch_size: int = 50  # larger ones fall out of the cache
    revision: str | None = None  # of a model on the hub
