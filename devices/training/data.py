"""Texts as tokens, and the batches that are made of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from devices.models.catalog import ModelSource
from traces.arrays import IntArray

START_ID, END_ID, FIRST_WORD_ID = 1, 2, 3
"""In the vocabulary of a model that is drawn; 0 is padding."""
TEXTS_AT_ONCE = 512


class Batch(NamedTuple):
    """Texts of like lengths, padded to the longest."""

    input_ids: Tensor  # (B, T)
    attention_mask: Tensor  # (B, T), 0 where padded
    labels: Tensor  # (B,)


@dataclass(frozen=True, eq=False)
class TokenizedTexts:
    """Labelled texts as token ids."""

    ids: Sequence[IntArray]
    labels: IntArray  # (n,)
    pad_id: int

    @cached_property
    def lengths(self) -> IntArray:
        """(n,): tokens of each text."""
        return np.array([len(row) for row in self.ids], dtype=np.int64)

    def batch(self, indices: IntArray, device: torch.device) -> Batch:
        """The texts at ``indices``, on ``device``."""
        lengths = self.lengths[indices]
        ids = np.full((len(indices), lengths.max()), self.pad_id, dtype=np.int64)
        for row, index in zip(ids, indices, strict=True):
            row[: self.lengths[index]] = self.ids[index]
        mask = np.arange(ids.shape[1]) < lengths[:, None]
        arrays = (ids, mask.astype(np.int64), self.labels[indices])
        return Batch(*(torch.from_numpy(array).to(device) for array in arrays))


def tokenize(source: ModelSource, texts: Sequence[str], max_length: int) -> list[IntArray]:
    """Token ids of each text as the model reads it, cut after ``max_length``."""
    rows: Iterable[Sequence[int]]
    if source.directory is None:
        size = source.config["vocab_size"]
        rows = ([*_hashed(text, size)[: max_length - 1], END_ID] for text in texts)
    else:
        rows = _as_the_model_reads(source, texts, max_length)
    return [np.array(row, dtype=np.int64) for row in rows]


def _as_the_model_reads(
    source: ModelSource, texts: Sequence[str], max_length: int
) -> Iterator[list[int]]:
    """By the model's own tokenizer, some texts at a time: each takes kilobytes on the way."""
    tokenizer = AutoTokenizer.from_pretrained(source.directory, local_files_only=True)
    for first in range(0, len(texts), TEXTS_AT_ONCE):
        yield from tokenizer(
            list(texts[first : first + TEXTS_AT_ONCE]),
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]


def _hashed(text: str, vocabulary_size: int) -> list[int]:
    """A start token, and each word as its hash: a vocabulary that needs no file."""
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
    """``steps`` batches of ``batch_size`` examples of a shard, in random order.

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
    """The same batches, the shortest texts at a step that ``rng`` draws, and so on to the longest.

    Jobs that draw alike have texts of like lengths at the same step, so that little is padded where
    they are trained in one pass.
    """
    by_length = sorted(batches, key=lambda batch: int(lengths[batch].max()))
    return [by_length[rank] for rank in rng.permutation(len(batches))]


def length_sorted_chunks(indices: IntArray, lengths: IntArray, chunk_size: int) -> list[IntArray]:
    """The examples in order of length, ``chunk_size`` at a time."""
    by_length = indices[np.argsort(lengths[indices], kind="stable")]
    return [by_length[i : i + chunk_size] for i in range(0, len(by_length), chunk_size)]


def stratified_subset(labels: IntArray, count: int, seed: int) -> IntArray:
    """Indices of ``count`` examples drawn so that each class keeps its share of the whole.

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
