"""Holds the options of training, which can be read without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le, Lt

from devices.models.spec import Attention
from traces.options import LEFT_OUT, Count, Options, Positive, Share, check_options

HostDtype = Literal["auto", "bf16", "fp32"]
HostCompute = Literal["auto", "cpu", "cuda"]
OptimizerName = Literal["adamw", "sgd", "adafactor"]
BatchKind = Literal["random", "lengths", "buckets"]
SGD_MOMENTUM = 0.9
"""The momentum of SGD unless another is given."""


@dataclass(frozen=True, kw_only=True)
class Schedule(Options):
    """A schedule changes the learning rate from round to round."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate falls after the warm-up: not at all, evenly, or along half a cosine."""
    warmup_rounds: Annotated[int, Ge(0), Le(1_000_000)] = 0
    """The rounds in which the rate first rises, evenly."""
    rounds: Count | None = None
    """The round after which the rate stays at its least; the last one of the run if left out."""
    final_share: Share = 0.0
    """The share of the learning rate that it falls to."""

    def share(self, round_number: int, last_round: int) -> float:
        """Return the share of the learning rate that a round trains with, from round 1.

        With w rounds of warm-up and the fall over by round n, it is k / (w + 1) in round k <= w.
        After that x = (k - w - 1) / (n - w), at most 1, is the part of the fall that is past, and
        the share is 1 - (1 - f) x for ``linear`` and f + (1 - f) (1 + cos(pi x)) / 2 for
        ``cosine``, f being the final share: transformers' schedules, a round in place of a step,
        but for the warm-up, whose first round is not at rate zero here.
        """
        if round_number <= self.warmup_rounds:
            return round_number / (self.warmup_rounds + 1)
        fall = (self.rounds or last_round) - self.warmup_rounds
        past = min(1.0, (round_number - self.warmup_rounds - 1) / fall)
        match self.kind:
            case "linear":
                return 1.0 - (1.0 - self.final_share) * past
            case "cosine":
                height = (1.0 + math.cos(math.pi * past)) / 2.0
                return self.final_share + (1.0 - self.final_share) * height
        return 1.0

    def check_rounds(self, last_round: int) -> None:
        """Raise ValueError where a run of so many rounds ends before the schedule does."""
        if self.rounds is not None and self.rounds > last_round:
            raise ValueError(
                f"rounds must be at most the {last_round} of the run, got {self.rounds}"
            )
        if self.warmup_rounds >= (self.rounds or last_round):
            raise ValueError(
                f"warmup_rounds must be below the {self.rounds or last_round} rounds of the "
                f"schedule, got {self.warmup_rounds}"
            )


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Training is done for real, on the machine that simulates, by these options."""

    learning_rate: Positive = 2e-3
    """The learning rate, before the schedule."""
    weight_decay: Annotated[float, Ge(0), Le(1_000)] = 0.01
    """The weight decay; SGD adds it to the gradient, the others apply it by itself."""
    optimizer: Annotated[OptimizerName, LEFT_OUT] = "adamw"
    """The optimizer of a device's steps, which its memory and time are charged for."""
    momentum: Annotated[float, Ge(0), Lt(1)] | None = None
    """The momentum of SGD; 0.9 if left out."""
    clip_norm: Positive | None = None
    """The norm of all gradients of a step above which they are scaled down to it."""
    schedule: Annotated[Schedule, LEFT_OUT] = Schedule()
    """How the learning rate changes from round to round."""
    label_smoothing: Annotated[float, Ge(0), Lt(1), LEFT_OUT] = 0.0
    """The share of each target that is spread evenly over all classes or tokens."""
    rslora: Annotated[bool, LEFT_OUT] = False
    """Whether the factors are scaled by alpha / sqrt(rank) in place of alpha / rank."""
    dtype: HostDtype = "auto"
    """The type of the host's matrix products; auto is bf16 where the processor has it."""
    compute: HostCompute = "auto"
    """The device that the host computes on; auto is a GPU where there is one."""
    attention: Attention = "eager"
    """The host's implementation of attention; on short texts in bf16, sdpa takes twice as long."""
    batches: BatchKind = "random"
    """Which examples share a batch: any, of like lengths, or any of one of 4 ranges of length."""
    stack: Annotated[int, Ge(1), Le(1_000)] = 1
    """The most devices that are trained in one pass, where their plans are alike."""
    max_loss: Positive = 10_000.0
    """The loss above which a step has diverged, as one without a number has."""
    when_diverged: Literal["stop", "drop"] = "stop"
    """Whether a diverged update stops the run or is left out alone."""

    def __post_init__(self) -> None:
        check_options(self)
        if self.momentum is not None and self.optimizer != "sgd":
            raise ValueError(
                f"momentum must be left out for {self.optimizer}, got {self.momentum}; it is an "
                "option of sgd"
            )

    @property
    def sgd_momentum(self) -> float:
        """Return the momentum of SGD; 0 under another optimizer."""
        if self.optimizer != "sgd":
            return 0.0
        return SGD_MOMENTUM if self.momentum is None else self.momentum
