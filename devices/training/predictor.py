"""Answers what a task asks of the model whose adapter is loaded: logits, and greedy answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig

from devices.tasks.task import IGNORED, Batch
from devices.training.batches import TokenizedTexts
from devices.training.model import AdaptedModel
from devices.training.tokens import ModelTokenizer
from traces.arrays import IntArray


@dataclass(frozen=True)
class ModelPredictor:
    """A model predictor lets tasks score a loaded model; see ``devices/tasks/task.py``."""

    model: AdaptedModel
    tokenizer: ModelTokenizer
    at_once: int  # the most rows of tokens in one pass
    chunk: Batch | None = None  # the batch for which passes run inside ``begin``
    begin: Callable[[], AbstractContextManager[None]] = nullcontext

    def logits(self, batch: Batch) -> Tensor:
        with self.begin() if batch is self.chunk else nullcontext():
            return self.model.logits(batch)

    def answers(self, prompts: Sequence[IntArray], num_tokens: int) -> list[str]:
        """Continue each prompt by the most likely token; see ``Predictor``.

        An answer ends where the model has no position left beside the longest prompt.
        """
        longest = max(map(len, prompts))
        ids = np.full((len(prompts), longest), self.model.pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, marks, prompt in zip(ids, mask, prompts, strict=True):
            row[longest - len(prompt) :], marks[longest - len(prompt) :] = prompt, 1
        room = min(num_tokens, self.model.max_length - longest)
        if room < 1:
            return [""] * len(prompts)
        given = [torch.from_numpy(each).to(self.model.host.device) for each in (ids, mask)]
        base: Any = self.model.network.get_base_model()  # type: ignore[operator]
        greedy: Any = GenerationConfig
        base.generation_config = greedy()  # the model's own files may ask for sampling
        with self.model.host.autocast():
            made = base.generate(
                input_ids=given[0],
                attention_mask=given[1],
                generation_config=greedy(
                    max_new_tokens=room,
                    do_sample=False,
                    use_cache=True,
                    eos_token_id=self.tokenizer.end,
                    pad_token_id=self.model.pad_id,
                ),
            )
        return [self.text(row) for row in made[:, longest:].cpu().numpy()]

    def log_likelihoods(self, rows: Sequence[tuple[IntArray, IntArray]]) -> list[float]:
        """Return the sum of the log-probabilities of the targets of each row, in nats.

        Rows are computed at most ``at_once`` at a time.
        """
        texts = TokenizedTexts(
            [ids for ids, _ in rows], [targets for _, targets in rows], pad_id=self.model.pad_id
        )
        found: list[float] = []
        for first in range(0, len(rows), self.at_once):
            chunk = np.arange(first, min(first + self.at_once, len(rows)))
            batch = texts.batch(chunk, self.model.host.device)
            logits = self.model.logits(batch).flatten(0, 1)
            losses = functional.cross_entropy(
                logits, batch.targets.flatten(), ignore_index=IGNORED, reduction="none"
            )
            found += (-losses.double().view(batch.targets.shape).sum(1)).tolist()
        return found

    def text(self, ids: IntArray) -> str:
        return self.tokenizer.text(ids)
