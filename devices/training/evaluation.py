"""Tests the global model on held-out examples, in chunks that any number of workers can share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import torch

from devices.tasks.task import Task
from devices.training.adapters import load_adapter
from devices.training.batches import TokenizedTexts
from devices.training.predictor import ModelPredictor
from devices.vocabulary.plan import Adapter, TermGrid
from devices.vocabulary.trainer import ChunkScore
from traces.arrays import IntArray


def score_chunk(
    predictor: ModelPredictor,
    task: Task,
    adapter: Adapter,
    *,
    texts: TokenizedTexts,
    chunk: IntArray,
    begin: Callable[[], AbstractContextManager[None]],
) -> ChunkScore:
    """Score the examples at ``chunk`` in one batch, with every block's weights in fp32.

    ``begin`` opens what lets a pass over them begin above the blocks that have not changed.
    """
    model = predictor.model
    load_adapter(model, adapter, TermGrid.top_blocks(model.spec.grid_shape(adapter.rank), depth=0))
    model.weights.use_fp32(adapter.merged, adapter.scale)
    batch = texts.batch(chunk, model.host.device)
    with torch.no_grad():
        return task.score(replace(predictor, chunk=batch, begin=begin), batch)
