"""Holds texts as token ids, and draws the batches that training is done on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from devices.options import BatchKind
from devices.tasks.rows import Rows
from devices.tasks.task import IGNORED, Batch, Offer, Targets
from devices.tasks.token_losses import next_tokens
from traces.arrays import IntArray

NUM_BUCKETS = 4
"""The parts, sorted by length, that ``buckets`` draws batches from."""


@dataclass(frozen=True, eq=False)
class TokenizedTexts:
    """Tokenized texts are examples as token ids, with their targets."""

    ids: Sequence[IntArray]
    targets: Targets
    token_types: Sequence[IntArray] | None = None
    offers: Sequence[Offer] = ()
    row_length: int = 0
    pad_id: int = 0

    def rows_of(self, shards: Sequence[IntArray]) -> tuple[TokenizedTexts, list[IntArray]]:
        """Return the rows that these shards are trained on, and the places of each shard's rows.

        These are the texts themselves, unless they are joined: then the texts of a shard stand one
        behind the other, in their order, and are cut into rows of ``row_length`` tokens. What is
        left over at the end of a shard has no row, unless it is all that there is.
        """
        if not self.row_length:
            return self, list(shards)
        each = [
            cut_rows(np.concatenate([self.ids[index] for index in shard]), self.row_length)
            for shard in shards
        ]
        rows = [row for some in each for row in some]
        ends = np.cumsum([len(some) for some in each])
        places = [
            np.arange(end - len(some), end) for end, some in zip(ends.tolist(), each, strict=True)
        ]
        return TokenizedTexts(rows, [next_tokens(row) for row in rows], pad_id=self.pad_id), places

    @cached_property
    def lengths(self) -> IntArray:
        """Return the number of tokens of each text, (n,)."""
        if isinstance(self.ids, Rows):
            return self.ids.lengths
        return np.array([len(row) for row in self.ids], dtype=np.int64)

    def batch(self, indices: IntArray, device: torch.device) -> Batch:
        """Gather the texts at ``indices``, (B,), as tensors on ``device``."""
        ids = _padded([self.ids[index] for index in indices], self.pad_id)
        mask = np.arange(ids.shape[1]) < self.lengths[indices][:, None]
        targets = (
            self.targets[indices]
            if isinstance(self.targets, np.ndarray)
            else _padded([self.targets[index] for index in indices], IGNORED)
        )
        types = self.token_types and _padded([self.token_types[index] for index in indices], 0)

        def tensor(array: Any) -> torch.Tensor:
            return torch.from_numpy(array).to(device)

        return Batch(
            tensor(ids),
            tensor(mask.astype(np.int64)),
            tensor(targets),
            None if types is None else tensor(types),
            tuple(self.offers[index] for index in indices) if self.offers else (),
        )


def cut_rows(tokens: IntArray, length: int) -> list[IntArray]:
    """Cut tokens into rows of ``length``, without what is left over; a shorter text is one row."""
    count = max(1, len(tokens) // length)
    return [tokens[k * length : (k + 1) * length] for k in range(count)]


def _padded(rows: Sequence[IntArray], filler: int) -> IntArray:
    """Return rows of unequal lengths as one array, (rows, longest)."""
    padded = np.full((len(rows), max(map(len, rows))), filler, dtype=np.int64)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded


def draw_batches(
    shard: IntArray,
    lengths: IntArray,
    *,
    steps: int,
    batch_size: int,
    rng: np.random.Generator,
    kind: BatchKind,
) -> list[IntArray]:
    """Draw ``steps`` batches of ``batch_size`` examples of a shard, in random order.

    Returns ``steps`` arrays of indices into the training set, each (batch_size,).

    Examples come without replacement until the shard is used up, then again. ``random`` batches
    are consecutive pieces of them. Otherwise those drawn are sorted, by ``lengths`` of the whole
    training set, so that little is padded: ``lengths`` makes batches of neighbours, ``buckets``
    shuffles the neighbours of about a quarter of all batches first. Raises ValueError for an empty
    shard.
    """
    if len(shard) == 0:
        raise ValueError("a device must have at least 1 example to train on, got none")
    num_drawn = steps * batch_size
    epochs = [rng.permutation(shard) for _ in range(-(-num_drawn // len(shard)))]
    drawn = np.concatenate(epochs)[:num_drawn]
    if kind == "random":
        return list(drawn.reshape(steps, batch_size))
    sorted_batches = drawn[np.argsort(lengths[drawn], kind="stable")].reshape(steps, batch_size)
    if kind == "buckets":
        buckets = np.array_split(sorted_batches, min(NUM_BUCKETS, steps))
        shuffled = np.concatenate([rng.permutation(bucket.ravel()) for bucket in buckets])
        sorted_batches = shuffled.reshape(steps, batch_size)
    return [sorted_batches[step] for step in rng.permutation(steps)]


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


def stratified_subset(groups: IntArray, count: int, seed: int) -> IntArray:
    """Draw the indices of ``count`` examples so that each group keeps its share of the whole.

    All of them, in order, where there are no more than ``count``.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(groups))
    turn = np.empty(len(groups), dtype=np.float64)
    for group in np.unique(groups):
        members = shuffled[groups[shuffled] == group]
        turn[members] = (np.arange(len(members)) + 0.5) / len(members)
    place = np.empty(len(groups), dtype=np.int64)
    place[shuffled] = np.arange(len(groups))
    return np.sort(np.lexsort((place, turn))[:count])
