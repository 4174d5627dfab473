"""Holds the settings of training, as plain numbers that can be read without torch."""

from __future__ import annotations

from dataclasses import dataclass

from devices.options import TrainingOptions


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(TrainingOptions):
    """A training config holds the settings by which a run's jobs are trained and tested."""

    model: str
    targets: tuple[str, ...]  # names of the adapted layers of a block
    max_length: int = 32  # in tokens; longer texts are cut
    eval_examples: int = 400
    eval_batch_size: int = 50  # larger batches do not fit into the processor's cache
    revision: str | None = None  # commit, branch or tag of a model on the hub
