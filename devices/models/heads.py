"""Describes what stands on top of a model's blocks: one row of outputs a text, or one a token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

PeftTaskType = Literal["SEQ_CLS", "CAUSAL_LM"]
"""PEFT's name for the class of models that an adapter belongs to."""


@dataclass(frozen=True)
class Head:
    """A head is the layers that turn hidden states into the outputs that a task is judged by.

    A head for texts computes one row of outputs for each text. It is drawn anew for every run, is
    trained with the adapters, and travels with them. A head for tokens computes one row for each
    token: it is the language model's own output layer, whose matrix stays frozen.
    """

    per: Literal["text", "token"]
    num_outputs: int  # C numbers for each text, or V (the vocabulary's size) for each token
    is_tied: bool = False  # True if a head for tokens shares its matrix with the embedding
    loss: Literal["cross_entropy", "squared_error"] = "cross_entropy"

    @property
    def is_trained(self) -> bool:
        """Return True if the head's tensors are a part of the adapter."""
        return self.per == "text"

    @property
    def num_frozen_rows(self) -> int:
        """Return the rows of a frozen output matrix of its own, each as wide as a hidden state."""
        return 0 if self.is_trained or self.is_tied else self.num_outputs

    @property
    def has_fp32_loss(self) -> bool:
        """Return True if the loss of each text is computed from outputs converted to fp32."""
        return self.per == "token" or self.loss == "squared_error"

    @property
    def peft_task_type(self) -> PeftTaskType:
        """Return the class of models that PEFT loads an exported adapter into."""
        return "SEQ_CLS" if self.per == "text" else "CAUSAL_LM"


def text_head(num_outputs: int) -> Head:
    """Return a head of ``num_outputs`` numbers for each text."""
    return Head("text", num_outputs)


def score_head() -> Head:
    """Return a head of one number for each text, which is trained with squared error."""
    return Head("text", 1, loss="squared_error")


def token_head(config: Mapping[str, Any]) -> Head:
    """Return the output layer of the language model that a config.json describes.

    Raises ValueError for a config without a vocabulary.
    """
    size = config.get("vocab_size")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"vocab_size must be a whole number above 0, got {size!r:.60}")
    return Head("token", size, is_tied=config.get("tie_word_embeddings") is True)
