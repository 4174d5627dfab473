"""Tests the global model on held-out texts, in chunks that any number of workers can share."""

from __future__ import annotations

import torch
from torch.nn import functional

from devices.training.adapters import load_adapter
from devices.training.data import TokenizedTexts
from devices.training.model import AdaptedModel
from devices.vocabulary.plan import Adapter, TermGrid
from devices.vocabulary.trainer import ChunkScore
from traces.arrays import IntArray


def score_chunk(
    model: AdaptedModel, adapter: Adapter, texts: TokenizedTexts, chunk: IntArray
) -> ChunkScore:
    """Classify the texts at ``chunk`` in one batch, with every block's weights in fp32."""
    load_adapter(model, adapter, TermGrid.top_blocks(model.spec.grid_shape(adapter.rank), depth=0))
    model.weights.use_fp32(adapter.merged, adapter.scale)
    batch = texts.batch(chunk, model.host.device)
    with torch.no_grad():
        logits = model.logits(batch)
        loss = functional.cross_entropy(logits, batch.labels, reduction="sum")
    num_classes = logits.shape[1]
    is_correct = logits.argmax(dim=1) == batch.labels
    counts = torch.bincount(batch.labels, minlength=num_classes).tolist()
    correct = torch.bincount(batch.labels[is_correct], minlength=num_classes).tolist()
    by_class = tuple(zip(counts, correct, strict=True))
    return ChunkScore(len(chunk), sum(correct), loss.item(), by_class)
