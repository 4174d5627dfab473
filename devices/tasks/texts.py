"""Turns texts, or pairs of texts, into tokens, for every task that has one target for each."""

from __future__ import annotations

from devices.datasets.dataset import Examples
from devices.tasks.task import Encoded, Targets, Tokenize


def encode_texts(examples: Examples, tokenize: Tokenize, targets: Targets) -> Encoded:
    """Return the tokens of each example, of both its texts where there is a column ``pair``."""
    if "pair" not in examples.columns:
        return Encoded(tokenize(examples["text"]), targets)
    ids, types = tokenize.pairs(examples["text"], examples["pair"])
    return Encoded(ids, targets, types)
