"""Holds the options of training, which can be read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

from devices.models.spec import Attention
from traces.options import Positive, check_options

HostDtype = Literal["auto", "bf16", "fp32"]
HostCompute = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Training is done for real, on the machine that simulates, by these options."""

    learning_rate: Positive = 2e-3
    """The learning rate of AdamW."""
    weight_decay: Annotated[float, Ge(0), Le(1_000)] = 0.01
    """The weight decay of AdamW."""
    dtype: HostDtype = "auto"
    """The type of the host's matrix products; auto is bf16 where the processor has it."""
    compute: HostCompute = "auto"
    """The device that the host computes on; auto is a GPU where there is one."""
    attention: Attention = "eager"
    """The host's implementation of attention; on short texts in bf16, sdpa takes twice as long."""
    stack: Annotated[int, Ge(1), Le(1_000)] = 1
    """The most devices that are trained in one pass, where their plans are alike."""
    max_loss: Positive = 10_000.0
    """The loss above which a step has diverged, as one without a number has."""
    when_diverged: Literal["stop", "drop"] = "stop"
    """Whether a diverged update stops the run or is left out alone."""

    def __post_init__(self) -> None:
        check_options(self)
