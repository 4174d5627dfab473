"""Predicts each next token of a text, by a decoder's own output layer: a causal language model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

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


@dataclass(frozen=True, eq=False)
class CausalLM(LearnsTokens):
    """Causal language modelling learns to predict each token of a text from those before it.

    A text ends with the tokenizer's token for the end, if it has one, and is cut after the longest
    length that the experiment allows; a text that is cut has no end. Loss is the mean over all
    predicted tokens of a batch, in nats; perplexity is exp(loss) over all of them, and at most
    ``MAX_PERPLEXITY``.
    """

    kind: ClassVar[str] = "causal-lm"
    columns: ClassVar[tuple[str, ...]] = ("text",)
    optional: ClassVar[tuple[str, ...]] = ()
    metrics: ClassVar[tuple[Metric, ...]] = TOKEN_METRICS

    data: TextDataset
    label_smoothing: float = 0.0  # the share of each target that is spread over all tokens

    @classmethod
    def of(cls, data: TextDataset) -> CausalLM:
        """Make the task of a data set with texts."""
        return cls(data)

    def encode(self, split: Split, tokenize: Tokenize) -> Encoded:
        ids = tokenize(self.data[split]["text"], ends=True)
        for place, row in enumerate(ids):
            if len(row) < 2:
                text = self.data[split]["text"][place]
                raise self.data[split].error(
                    place,
                    "every text must be at least two tokens, the first of which predicts the "
                    f"second, got one for {text!r:.60}, and the tokenizer has no end to add",
                )
        return Encoded(ids, [next_tokens(row) for row in ids])

    def score(self, model: Predictor, batch: Batch) -> ChunkScore:
        return score_tokens(model.logits(batch), batch)

    def evaluation(self, scores: Iterable[ChunkScore]) -> Evaluation:
        return Evaluation(token_values(totals(scores)))

    def facts(self) -> dict[str, Any]:
        return {}
