"""Predicts each next token of a text, by a decoder's own output layer: a causal language model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from devices.datasets.dataset import Split, TextDataset
from devices.tasks.task import Batch, Encoded, Metric, Predictor, Tokenize, totals
from devices.tasks.token_losses import (
    TOKEN_METRICS,
    LearnsTokens,
    next_tokens,
    score_tokens,
    token_values,
)
from devices.vocabulary.trainer import ChunkScore, Evaluation

Packing = Literal["by-document", "packed"]


@dataclass(frozen=True, eq=False)
class CausalLM(LearnsTokens):
    """Causal language modelling learns to predict each token of a text from those before it.

    A text ends with the tokenizer's token for the end, if it has one. By document it is cut after
    the longest length that the experiment allows, and has no end then; packed, the texts of a
    device, and those that models are tested on, are joined and cut into rows of that length. Loss
    is the mean over all predicted tokens of a batch, in nats; perplexity is exp(loss) over all of
    them, and at most ``MAX_PERPLEXITY``.
    """

    kind: ClassVar[str] = "causal-lm"
    columns: ClassVar[tuple[str, ...]] = ("text",)
    optional: ClassVar[tuple[str, ...]] = ()
    metrics: ClassVar[tuple[Metric, ...]] = TOKEN_METRICS

    data: TextDataset
    packing: Packing = "by-document"
    label_smoothing: float = 0.0  # share of each target that is spread evenly over all tokens

    @classmethod
    def of(cls, data: TextDataset) -> CausalLM:
        """Make the task of a data set with texts."""
        return cls(data)

    def encode(self, split: Split, tokenize: Tokenize) -> Encoded:
        is_packed = self.packing == "packed"
        ids = tokenize(self.data[split]["text"], ends=True, cut=not is_packed)
        for place, row in enumerate(ids):
            if len(row) < 2:
                text = self.data[split]["text"][place]
                raise self.data[split].error(
                    place,
                    "every text must be at least two tokens, the first of which predicts the "
                    f"second, got one for {text!r:.60}, and the tokenizer has no end to add",
                )
        targets = [next_tokens(row) for row in ids]
        return Encoded(ids, targets, row_length=tokenize.max_length if is_packed else 0)

    def score(self, model: Predictor, batch: Batch) -> ChunkScore:
        return score_tokens(model.logits(batch), batch)

    def evaluation(self, scores: Iterable[ChunkScore]) -> Evaluation:
        return Evaluation(token_values(totals(scores)))

    def facts(self) -> dict[str, Any]:
        return {}
