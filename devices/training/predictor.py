"""Answers what a task asks of the model whose adapter is loaded: logits, and greedy answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from devices.tasks.task import Batch
from devices.training.data import ModelTokenizer
from devices.training.model import AdaptedModel
from traces.arrays import IntArray


@dataclass(frozen=True)
class ModelPredictor:
    """A loaded model with its tokenizer, as tasks score it; see ``devices/tasks/task.py``."""

    model: AdaptedModel
    tokenizer: ModelTokenizer

    def logits(self, batch: Batch) -> Tensor:
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
        base.generation_config = greedy()  # not what its files say, such as sampling
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

    def text(self, ids: IntArray) -> str:
        return self.tokenizer.text(ids)
