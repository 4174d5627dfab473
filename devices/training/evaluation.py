"""The global model on held-out texts, in chunks that any number of workers can share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch.nn import functional

from devices.plan import Adapter, TermGrid
from devices.trainer import Evaluation
from devices.training.adapters import load_adapter
from devices.training.data import IndexArray, TokenizedTexts
from devices.training.model import AdaptedModel


class ChunkScore(NamedTuple):
    """What one chunk of the test texts adds to an evaluation."""

    num_examples: int
    num_correct: int
    loss_sum: float


def score_chunk(
    model: AdaptedModel, adapter: Adapter, texts: TokenizedTexts, chunk: IndexArray
) -> ChunkScore:
    """Classify the texts at ``chunk`` in one batch, with every block's weights in fp32."""
    load_adapter(model, adapter, TermGrid.top_blocks(model.spec.grid_shape(adapter.rank), depth=0))
    model.weights.use_fp32()
    batch = texts.batch(chunk, model.host.device)
    with torch.no_grad():
        logits = model.logits(batch)
        loss = functional.cross_entropy(logits, batch.labels, reduction="sum")
    num_correct = (logits.argmax(dim=1) == batch.labels).sum()
    return ChunkScore(len(chunk), int(num_correct), loss.item())


def combine(scores: Iterable[ChunkScore]) -> Evaluation:
    """Accuracy and mean loss over all chunks, whoever scored them and in whatever order."""
    counts, correct, losses = zip(*scores, strict=True)
    return Evaluation(sum(correct) / sum(counts), math.fsum(losses) / sum(counts))
