"""Takes the steps of an optimizer on what one job trains, or each of several jobs in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from devices.training.config import TrainingConfig

CLIP_EPSILON = 1e-6
"""What torch's own clipping adds to a norm before it divides by it."""


class OwnPart(NamedTuple):
    """An own part is one job's share of a tensor that several jobs train in one pass."""

    whole: nn.Parameter  # (jobs, ...): the tensor of all jobs
    place: tuple[int | slice, ...]  # the index of the job's part in it


class Updater:
    """An updater clips the gradients, takes the optimizer's step, and lets go of the gradients.

    ``parameters`` are those of one job, or of a stack, whose first axis then counts its
    ``num_jobs``; each job's result is that of training it alone. ``parts`` are what each job of a
    stack really trains of them, without the zeros where it holds fewer terms than another.
    """

    def __init__(
        self,
        config: TrainingConfig,
        parameters: Sequence[nn.Parameter],
        *,
        rate_share: float = 1.0,
        num_jobs: int | None = None,
        parts: Sequence[OwnPart] = (),
    ) -> None:
        self._parameters, self._num_jobs = parameters, num_jobs
        self._clip_norm = config.clip_norm
        # Adafactor takes means over each job's matrix. The other optimizers work element by
        # element, and so can step all jobs at once.
        self._parts = parts if config.optimizer == "adafactor" else ()
        self._views = [nn.Parameter(part.whole.data[part.place]) for part in self._parts]
        chosen = self._views or parameters
        self._optimizer = make_optimizer(config, chosen, config.learning_rate * rate_share)

    def step(self) -> None:
        """Take one step by the gradients that the parameters have, which are then None."""
        if self._clip_norm is not None:
            self._clip(self._clip_norm)
        for part, view in zip(self._parts, self._views, strict=True):
            assert part.whole.grad is not None
            view.grad = part.whole.grad[part.place]
        self._optimizer.step()
        for parameter in (*self._parameters, *self._views):
            parameter.grad = None

    def _clip(self, most: float) -> None:
        """Scale the gradients of each job so that the norm of all of them is at most ``most``."""
        if self._num_jobs is None:
            nn.utils.clip_grad_norm_(self._parameters, most)
            return
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norms = _norms(gradients, self._num_jobs)
        factors = (most / (norms + CLIP_EPSILON)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))


def _norms(gradients: Sequence[Tensor], num_jobs: int) -> Tensor:
    """Return the norm of all gradients of each job, (jobs,)."""
    squares = [gradient.reshape(num_jobs, -1).square().sum(1) for gradient in gradients]
    return torch.stack(squares).sum(0).sqrt()


def make_optimizer(
    config: TrainingConfig, parameters: Sequence[nn.Parameter], learning_rate: float
) -> torch.optim.Optimizer:
    """Return torch's own optimizer of the name that the config gives."""
    match config.optimizer:
        case "sgd":
            return torch.optim.SGD(
                parameters,
                lr=learning_rate,
                momentum=config.sgd_momentum,
                weight_decay=config.weight_decay,
                fused=True,
            )
        case "adafactor":
            return torch.optim.Adafactor(
                parameters, lr=learning_rate, weight_decay=config.weight_decay
            )
    return torch.optim.AdamW(
        parameters, lr=learning_rate, weight_decay=config.weight_decay, fused=True
    )
