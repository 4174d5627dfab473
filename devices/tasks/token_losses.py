"""Computes what every task has that predicts tokens: head, loss and scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from devices.datasets.dataset import Split
from devices.models.heads import Head, token_head
from devices.tasks.task import IGNORED, Batch, Metric
from devices.vocabulary.trainer import ChunkScore
from traces.arrays import IntArray

if TYPE_CHECKING:
    from torch import Tensor


TOKEN_METRICS = (
    Metric("perplexity", "", "lower"),
    Metric("loss", "nats", "lower"),
    Metric("token_accuracy", "share", "higher"),
)
MAX_PERPLEXITY = 1e100
"""A larger perplexity is written as this one, so that means and ratios of it are numbers."""


class LearnsTokens:
    """This base of tasks that predict tokens has a language model's head and the loss of tokens.

    Its examples stand in no groups.
    """

    label_smoothing: float  # share of each target that is spread evenly over all tokens

    def head(self, config: Mapping[str, Any]) -> Head:
        return token_head(config)

    def losses(self, logits: Tensor, batch: Batch, *, num_jobs: int = 1) -> tuple[Tensor, Tensor]:
        return token_losses(
            logits, batch.targets, num_jobs=num_jobs, smoothing=self.label_smoothing
        )

    def groups(self, split: Split) -> IntArray | None:
        return None


def next_tokens(ids: IntArray) -> IntArray:
    """Return, for each token of an example, the token after it, and IGNORED for the last."""
    return np.append(ids[1:], IGNORED)


def token_losses(
    logits: Tensor, targets: Tensor, *, num_jobs: int = 1, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the mean loss over the tokens of each job, (jobs,), and of each example, (B,).

    ``logits`` is (B, T, V) in fp32 and ``targets`` (B, T). Every token with a target counts alike
    within a job, as in transformers' own loss of language models. Only the first has gradients, and
    it alone spreads ``smoothing`` of each target over all tokens.
    """
    from torch.nn import functional

    cross_entropy = partial(
        functional.cross_entropy,
        target=targets.flatten(),
        ignore_index=IGNORED,
        reduction="none",
    )
    flat = cross_entropy(logits.flatten(0, 1), label_smoothing=smoothing)
    by_row = flat.view(targets.shape).sum(1)  # (B, T) -> (B,)
    counts = (targets != IGNORED).sum(1)
    means = by_row.view(num_jobs, -1).sum(1) / counts.view(num_jobs, -1).sum(1)
    if smoothing:
        plain = cross_entropy(logits.detach().flatten(0, 1))
        by_row = plain.view(targets.shape).sum(1)
    return means, by_row.detach() / counts


def score_tokens(logits: Tensor, batch: Batch) -> ChunkScore:
    """Return the number of predicted tokens, of right ones, and the sum of their losses."""
    from torch.nn import functional

    is_target = batch.targets != IGNORED
    loss = functional.cross_entropy(
        logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    is_right = (logits.argmax(dim=2) == batch.targets) & is_target
    counts = (int(is_target.sum()), int(is_right.sum()), float(loss.double().sum()))
    return ChunkScore(tuple(map(float, counts)))


def token_values(sums: Sequence[float]) -> dict[str, float]:
    """Return the metrics of predicted tokens, from the sums of ``score_tokens`` over all chunks."""
    num_tokens, num_right, loss_sum = sums[:3]
    loss = loss_sum / num_tokens
    is_large = loss > math.log(MAX_PERPLEXITY)  # False for NaN, which exp then keeps
    perplexity = MAX_PERPLEXITY if is_large else math.exp(loss)
    return {"perplexity": perplexity, "loss": loss, "token_accuracy": num_right / num_tokens}
