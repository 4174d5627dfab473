from collections import Counter
from functools import partial
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from devices.models.catalog import resolve
from devices.options import BatchKind
from devices.training.batches import (
    TokenizedTexts,
    draw_batches,
    in_common_order,
    length_sorted_chunks,
    stratified_subset,
)
from devices.training.tokens import TEXTS_AT_ONCE, tokenize
from tests.devices.training.tiny_task import needs_minilm

KINDS: tuple[BatchKind, ...] = get_args(BatchKind)
LENGTHS = np.random.default_rng(0).integers(3, 40, size=200)


@given(
    st.integers(1, 60),
    st.integers(1, 6),
    st.integers(1, 9),
    st.integers(0, 2**32 - 1),
    st.sampled_from(KINDS),
)
def test_each_example_is_drawn_equally_often_to_within_one(
    num_examples: int, steps: int, batch_size: int, seed: int, kind: BatchKind
) -> None:
    shard = np.arange(100, 100 + num_examples)
    rng = np.random.default_rng(seed)
    batches = draw_batches(shard, LENGTHS, steps=steps, batch_size=batch_size, rng=rng, kind=kind)
    assert [len(batch) for batch in batches] == [batch_size] * steps
    counts = Counter(int(index) for batch in batches for index in batch)
    drawn = [counts[index] for index in shard]
    assert sum(drawn) == steps * batch_size
    assert max(drawn) - min(drawn) <= 1


def test_a_batch_holds_texts_of_like_lengths() -> None:
    shard = np.arange(len(LENGTHS))
    rng = np.random.default_rng(1)
    batches = draw_batches(shard, LENGTHS, steps=10, batch_size=16, rng=rng, kind="lengths")
    ranges = sorted((LENGTHS[batch].min(), LENGTHS[batch].max()) for batch in batches)
    assert all(one[1] <= other[0] for one, other in pairwise(ranges))
    assert [LENGTHS[batch].min() for batch in batches] != [low for low, _ in ranges]  # shuffled


def test_random_batches_are_those_of_a_plain_loop() -> None:
    """A plain loop shuffles the examples for each epoch, and takes them in that order."""
    shard = np.arange(50, 90)
    rng = np.random.default_rng(2)
    order = np.concatenate([rng.permutation(shard) for _ in range(3)])
    batches = draw_batches(
        shard, LENGTHS, steps=14, batch_size=8, rng=np.random.default_rng(2), kind="random"
    )
    for step, batch in enumerate(batches):
        assert batch.tolist() == order[step * 8 : step * 8 + 8].tolist()
    for epoch in (batches[:5], batches[5:10]):
        assert sorted(np.concatenate(epoch)) == shard.tolist()


def test_a_batch_of_a_bucket_holds_lengths_of_one_quarter_in_random_order() -> None:
    shard = np.arange(len(LENGTHS))
    draw = partial(draw_batches, shard, LENGTHS, steps=12, batch_size=16)
    batches = draw(rng=np.random.default_rng(1), kind="buckets")
    drawn = np.sort(LENGTHS[np.concatenate(batches)]).reshape(4, 48)
    ends = [(part[0], part[-1]) for part in drawn]
    found = [(LENGTHS[batch].min(), LENGTHS[batch].max()) for batch in batches]
    homes = [[k for k, (low, top) in enumerate(ends) if low <= a and b <= top] for a, b in found]
    assert all(homes)
    assert homes != sorted(homes)
    sorted_batches = draw(rng=np.random.default_rng(1), kind="lengths")
    spread = [sum(np.ptp(LENGTHS[batch]) for batch in of) for of in (sorted_batches, batches)]
    assert spread[0] < spread[1]


def test_in_a_common_order_two_jobs_have_like_lengths_at_each_step() -> None:
    draw = partial(draw_batches, lengths=LENGTHS, steps=8, batch_size=5, kind="lengths")
    first, second = (
        draw(shard, rng=np.random.default_rng(k))
        for k, shard in enumerate(np.arange(200).reshape(2, 100))
    )
    ordered = [in_common_order(of, LENGTHS, np.random.default_rng(3)) for of in (first, second)]
    for job, drawn in zip(ordered, (first, second), strict=True):
        assert sorted(map(tuple, job)) == sorted(map(tuple, drawn))
    longest = [[int(LENGTHS[batch].max()) for batch in job] for job in ordered]
    assert np.argsort(longest[0]).tolist() == np.argsort(longest[1]).tolist()
    assert longest[0] != sorted(longest[0])
    other = in_common_order(first, LENGTHS, np.random.default_rng(4))
    assert [tuple(batch) for batch in other] != [tuple(batch) for batch in ordered[0]]


@pytest.mark.parametrize("kind", KINDS)
def test_batches_follow_from_the_seed(kind: BatchKind) -> None:
    draw = partial(draw_batches, np.arange(len(LENGTHS)), LENGTHS, steps=3, batch_size=8, kind=kind)
    draws = [np.concatenate(draw(rng=np.random.default_rng(seed))).tolist() for seed in (5, 5, 6)]
    assert draws[0] == draws[1] != draws[2]


def test_an_empty_shard_is_refused() -> None:
    draw = partial(draw_batches, np.arange(0), LENGTHS, steps=1, batch_size=1, kind="random")
    with pytest.raises(ValueError, match="at least 1 example to train on, got none"):
        draw(rng=np.random.default_rng(0))


def test_a_batch_is_padded_to_its_longest_text() -> None:
    ids = [np.array([1, 7, 2]), np.array([1, 2]), np.array([1, 5, 5, 5, 2])]
    texts = TokenizedTexts(ids, np.array([0, 1, 2]), pad_id=9)
    batch = texts.batch(np.array([1, 0]), torch.device("cpu"))
    assert batch.input_ids.tolist() == [[1, 2, 9], [1, 7, 2]]
    assert batch.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.targets.tolist() == [1, 0]


def test_tiny_reads_each_word_as_its_hash() -> None:
    one, two = tokenize(resolve("tiny"), ["Ash and elm", "elm"], 8)
    assert (one[0], one[-1], len(one)) == (1, 2, 5)
    assert one[3] == two[1] >= 3
    assert tokenize(resolve("tiny"), ["Ash and elm"], 3)[0].tolist() == [1, one[1], 2]


@needs_minilm
def test_a_long_text_is_cut_to_the_limit() -> None:
    long, short = tokenize(resolve("minilm-l6"), ["oak " * 50, "oak"], 12)
    assert (len(long), len(short)) == (12, 3)
    assert (long[0], long[-1]) == (short[0], short[-1])  # start and end survive


@needs_minilm
def test_a_text_is_read_alike_wherever_it_stands_among_many() -> None:
    rows = tokenize(resolve("minilm-l6"), [f"oak {k % 7}" for k in range(TEXTS_AT_ONCE + 7)], 12)
    assert len(rows) == TEXTS_AT_ONCE + 7
    for k, row in enumerate(rows):
        np.testing.assert_array_equal(row, rows[k % 7])


@given(st.integers(1, 120), st.integers(0, 100))
def test_a_subset_keeps_the_shares_of_the_classes(count: int, seed: int) -> None:
    """An answer that is always the same therefore scores as on the whole."""
    sizes = np.array([60, 30, 10])
    chosen = stratified_subset(np.repeat([0, 1, 2], sizes), count, seed)
    assert len(set(chosen.tolist())) == len(chosen) == min(count, 100)
    counts = np.bincount(np.repeat([0, 1, 2], sizes)[chosen], minlength=3)
    assert (np.abs(counts - len(chosen) * sizes / 100) <= 1).all()


def test_a_subset_is_drawn_not_cut_off() -> None:
    labels = np.repeat([0, 1], 50)
    assert stratified_subset(labels, 10, 0).tolist() != stratified_subset(labels, 10, 1).tolist()
    assert stratified_subset(labels, 10, 0).tolist() == stratified_subset(labels, 10, 0).tolist()


def test_chunks_hold_every_example_once_in_order_of_length() -> None:
    chunks = length_sorted_chunks(np.arange(50), LENGTHS, 16)
    assert [len(chunk) for chunk in chunks] == [16, 16, 16, 2]
    joined = np.concatenate(chunks)
    assert sorted(joined) == list(range(50))
    assert (np.diff(LENGTHS[joined]) >= 0).all()
