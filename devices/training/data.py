"""Turns texts into tokens, and draws the batches that training is done on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from devices.models.catalog import ModelSource
from devices.training.files import checked_folder, quiet, read_config, said_in_words
from traces.arrays import IntArray

START_ID, END_ID, FIRST_WORD_ID = 1, 2, 3
"""Token ids in the vocabulary of a model that is drawn; 0 is padding."""
TEXTS_AT_ONCE = 512
"""Texts that a tokenizer is given in one call: each takes kilobytes on the way."""


class Batch(NamedTuple):
    """A batch of labelled texts as tensors, padded to the longest of them."""

    input_ids: Tensor  # (B, T) token ids
    attention_mask: Tensor  # (B, T), 1 for a token of the text, 0 for padding
    labels: Tensor  # (B,) indices of classes


@dataclass(frozen=True, eq=False)
class TokenizedTexts:
    """Labelled texts as token ids."""

    ids: Sequence[IntArray]
    labels: IntArray  # (n,)
    pad_id: int

    @cached_property
    def lengths(self) -> IntArray:
        """The number of tokens of each text, (n,)."""
        return np.array([len(row) for row in self.ids], dtype=np.int64)

    def batch(self, indices: IntArray, device: torch.device) -> Batch:
        """Gather the texts at ``indices``, (B,), as tensors on ``device``."""
        lengths = self.lengths[indices]
        ids = np.full((len(indices), lengths.max()), self.pad_id, dtype=np.int64)
        for row, index in zip(ids, indices, strict=True):
            row[: self.lengths[index]] = self.ids[index]
        mask = np.arange(ids.shape[1]) < lengths[:, None]
        arrays = (ids, mask.astype(np.int64), self.labels[indices])
        return Batch(*(torch.from_numpy(array).to(device) for array in arrays))


def tokenize(source: ModelSource, texts: Sequence[str], max_length: int) -> list[IntArray]:
    """Turn each text into token ids as the model's own tokenizer does, cut after ``max_length``.

    Raises ValueError for a tokenizer that cannot be loaded or used.
    """
    if source.files is None:
        size = source.config["vocab_size"]
        rows = [[*_hashed(text, size)[: max_length - 1], END_ID] for text in texts]
        return [np.array(row, dtype=np.int64) for row in rows]
    with said_in_words(source, "whose tokenizer transformers can use"), quiet():
        with checked_folder(source.files) as folder:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, config=read_config(source), local_files_only=True, trust_remote_code=False
            )
        return [
            np.array(row[:max_length], dtype=np.int64)
            for first in range(0, len(texts), TEXTS_AT_ONCE)
            for row in tokenizer(
                list(texts[first : first + TEXTS_AT_ONCE]),
                truncation=True,
                max_length=max_length,
                return_attention_mask=False,
                return_token_type_ids=False,
            )["input_ids"]
        ]


def check_tokens(
    source: ModelSource, texts: Sequence[str], ids: Sequence[IntArray], vocabulary_size: int
) -> None:
    """Raise ValueError for a text without a token, or with one that the model has no embedding for.

    ``ids`` are the tokens of ``texts``, one array each.
    """
    for text, row in zip(texts, ids, strict=True):
        if not len(row):
            raise ValueError(
                f"every text must become at least one token of {source.name}, got none for "
                f"{text!r:.60}"
            )
        if not 0 <= row.min() <= row.max() < vocabulary_size:
            wrong = next(token for token in row.tolist() if not 0 <= token < vocabulary_size)
            raise ValueError(
                f"the tokens of {source.name} must be below the {vocabulary_size} that its "
                f"embedding has, got {wrong} for {text!r:.60}: tokenizer and weights are of two "
                "models"
            )


def _hashed(text: str, vocabulary_size: int) -> list[int]:
    """Return a start token, and for each word its hash: a vocabulary that needs no file."""
    words = text.lower().split()
    num_words = vocabulary_size - FIRST_WORD_ID
    return [START_ID, *(FIRST_WORD_ID + crc32(word.encode()) % num_words for word in words)]


def draw_batches(
    shard: IntArray,
    lengths: IntArray,
    *,
    steps: int,
    batch_size: int,
    rng: np.random.Generator,
) -> list[IntArray]:
    """Draw ``steps`` batches of ``batch_size`` examples of a shard, in random order.

    Returns ``steps`` arrays of indices into the training set, each (batch_size,).

    Examples come without replacement until the shard is used up, then again. Those drawn are
    sorted into batches of like lengths, so that little is padded; ``lengths`` is of the whole
    training set. Raises ValueError for an empty shard.
    """
    if len(shard) == 0:
        raise ValueError("a device must have at least 1 example to train on, got none")
    num_drawn = steps * batch_size
    epochs = [rng.permutation(shard) for _ in range(-(-num_drawn // len(shard)))]
    drawn = np.concatenate(epochs)[:num_drawn]
    by_length = drawn[np.argsort(lengths[drawn], kind="stable")].reshape(steps, batch_size)
    return [by_length[step] for step in rng.permutation(steps)]


def in_common_order(
    batches: Sequence[IntArray], lengths: IntArray, rng: np.random.Generator
) -> list[IntArray]:
    """Reorder batches: the shortest texts come at a step that ``rng`` draws, and so on.

    Jobs that draw alike have texts of like lengths at the same step, so that little is padded where
    they are trained in one pass.
    """
    by_length = sorted(batches, key=lambda batch: int(lengths[batch].max()))
    return [by_length[rank] for rank in rng.permutation(len(batches))]


def length_sorted_chunks(indices: IntArray, lengths: IntArray, chunk_size: int) -> list[IntArray]:
    """Split the examples into chunks of ``chunk_size``, in order of their lengths in tokens."""
    by_length = indices[np.argsort(lengths[indices], kind="stable")]
    return [by_length[i : i + chunk_size] for i in range(0, len(by_length), chunk_size)]


def stratified_subset(labels: IntArray, count: int, seed: int) -> IntArray:
    """Draw the indices of ``count`` examples so that each class keeps its share of the whole.

    All of them, in order, where there are no more than ``count``.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    turn = np.empty(len(labels), dtype=np.float64)
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        turn[members] = (np.arange(len(members)) + 0.5) / len(members)
    place = np.empty(len(labels), dtype=np.int64)
    place[shuffled] = np.arange(len(labels))
    return np.sort(np.lexsort((place, turn))[:count])
