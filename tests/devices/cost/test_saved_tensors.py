from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from devices.cost.blocks import BatchShape, BlockTerms, block_terms, gradient_flow
from devices.cost.saved import SavedTensor, block_tensors, head_tensors, raw_bytes, rotary_tensors
from devices.models.spec import Attention, ModelSpec
from devices.vocabulary.number_formats import SMALLEST_PACKED
from devices.vocabulary.plan import TermGrid
from tests.devices.cost.specs import (
    BERT_LINEARS,
    LINEARS,
    LLAMA_LINEARS,
    attentions,
    minilm,
    smollm,
)
from tests.devices.cost.torch_measures import MINILM, RANK, TINY, Where, load, saved_bytes
from tests.torture import some

ATTENTIONS: tuple[Attention, ...] = ("eager", "sdpa")
FAMILIES = ("bert", "llama")


def closed_form(spec: ModelSpec, depth: int, batch: BatchShape) -> dict[Where, int]:
    """Return the bytes saved by place, as ``saved_bytes`` measures them."""
    blocks = block_terms(spec, TermGrid.top_blocks(spec.grid_shape(RANK), depth))
    found: dict[Where, int] = {
        index: block_bytes(spec, block, batch) for index, block in enumerate(blocks)
    }
    rotary = raw_bytes(rotary_tensors(spec, blocks, batch))
    if rotary:  # the first block that rotates something with a gradient saves these for all
        found[next(index for index, block in enumerate(blocks) if rotates(block))] += rotary
    found["after"] = raw_bytes(head_tensors(spec, blocks, batch))
    return {place: num_bytes for place, num_bytes in found.items() if num_bytes}


def block_bytes(spec: ModelSpec, block: BlockTerms, batch: BatchShape, bits: int = 32) -> int:
    return sum(
        tensor.held_bytes(bits) for half in block_tensors(spec, block, batch) for tensor in half
    )


def rotates(block: BlockTerms) -> bool:
    return block.position != "below" and any(gradient_flow(block).outputs[:2])


def target_sets(family: str) -> list[tuple[str, ...]]:
    """Return the usual sets, and each layer alone, which shows whatever that layer saves of its
    own."""
    names = LINEARS[family]
    return [names, (names[0], names[2]), names[:4], *[(name,) for name in names]]


@pytest.mark.parametrize(
    ("family", "targets"),
    some([(family, targets) for family in FAMILIES for targets in target_sets(family)], 2),
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_saved_bytes_equal_what_torch_saves_at_every_depth(
    family: str, targets: tuple[str, ...], attention: Attention
) -> None:
    measured = load(family, TINY, targets, attention=attention)
    for depth in range(TINY.num_blocks + 1):
        batch = BatchShape(2, 12, is_padded=depth % 2 == 0, bits=32)
        measured.train_top(depth)
        assert saved_bytes(measured, batch) == closed_form(measured.spec, depth, batch), depth


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", ["distilbert", "mpnet", "qwen2", "qwen3"])
def test_saved_bytes_equal_what_torch_saves_in_other_families(
    family: str, attention: Attention
) -> None:
    if attention not in attentions(family):
        pytest.skip("transformers has no flash attention for it")
    for targets in target_sets(family)[:3]:
        measured = load(family, TINY, targets, attention=attention)
        for depth in range(TINY.num_blocks + 1):
            batch = BatchShape(2, 12, is_padded=depth % 2 == 0, bits=32)
            measured.train_top(depth)
            assert saved_bytes(measured, batch) == closed_form(measured.spec, depth, batch), depth


@pytest.mark.parametrize(
    ("family", "attention", "is_padded"),
    some(product(("bert", "roberta", "llama"), ATTENTIONS, (True, False)), 5),
)
def test_saved_bytes_equal_what_torch_saves_at_the_size_of_minilm(
    family: str, attention: Attention, is_padded: bool
) -> None:
    targets = target_sets(family)[1]
    measured = load(family, MINILM, targets, attention=attention)
    batch = BatchShape(4, 32, is_padded, bits=32)
    for depth in (1, 2):
        measured.train_top(depth)
        assert saved_bytes(measured, batch) == closed_form(measured.spec, depth, batch)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_bytes_equal_what_torch_saves_in_16_bits(family: str, attention: Attention) -> None:
    for targets in target_sets(family)[:3]:
        measured = load(family, TINY, targets, attention=attention, dtype=torch.bfloat16)
        batch = BatchShape(2, 12, is_padded=True, bits=16)
        measured.train_top(2)
        assert saved_bytes(measured, batch) == closed_form(measured.spec, 2, batch)


class TestSums:
    """These tests check the sums of docs/costs.md, for a block with every layer adapted and one
    trained below it."""

    size, length, rank = 8, 64, 8
    tokens = size * length

    def measure(self, spec: ModelSpec, *, is_padded: bool = False, bits: int = 32) -> int:
        shape = spec.grid_shape(self.rank)
        top = block_terms(spec, TermGrid.top_blocks(shape, 2))[-1]
        return block_bytes(spec, top, BatchShape(self.size, self.length, is_padded, 32), bits)

    @pytest.mark.parametrize("attention", ATTENTIONS)
    def test_bert(self, attention: Attention) -> None:
        spec = minilm(BERT_LINEARS, attention)
        h, f, n = spec.hidden, spec.ffn, spec.num_heads
        scores = n * self.tokens * (self.length if attention == "eager" else 1)
        assert self.measure(spec) == 4 * (
            self.tokens * (8 * h + 2 * f + 6 * self.rank + 4) + scores
        )

    @pytest.mark.parametrize("attention", ATTENTIONS)
    def test_llama(self, attention: Attention) -> None:
        spec = smollm(LLAMA_LINEARS, attention)
        h, f, n = spec.hidden, spec.ffn, spec.num_heads
        scores = n * self.tokens * (self.length if attention == "eager" else 1)
        width = 8 * h + 4 * f + 7 * self.rank + 2
        if attention == "sdpa":
            width -= 2 * (h - 3 * 64)  # three of nine heads of width 64
        assert self.measure(spec) == 4 * (self.tokens * width + scores)

    def test_a_padded_batch_adds_a_mask_to_flash_attention_alone(self) -> None:
        eager, flash = (minilm(BERT_LINEARS, attention) for attention in ATTENTIONS)
        mask = 4 * self.size * self.length**2
        assert self.measure(flash, is_padded=True) - self.measure(flash) == mask
        assert self.measure(eager, is_padded=True) == self.measure(eager)

    def test_minilm_block_packs_from_12_7_to_3_4_and_2_1_megabytes(self) -> None:
        spec = minilm(BERT_LINEARS, "sdpa")
        sizes = [round(self.measure(spec, bits=bits) / 1e6, 2) for bits in (32, 8, 4)]
        assert sizes == [12.71, 3.40, 2.11]


def test_the_lowest_trained_block_needs_no_gradient_of_its_input() -> None:
    spec, batch = smollm(LLAMA_LINEARS), BatchShape(8, 64, False, 32)
    bottom, top = block_terms(spec, TermGrid.top_blocks(spec.grid_shape(4), 2))[-2:]
    less = block_bytes(spec, top, batch) - block_bytes(spec, bottom, batch)
    assert less == 4 * batch.tokens * (spec.hidden + 1)  # its first norm saves nothing


def test_a_block_without_trained_terms_saves_what_the_gradient_needs_to_cross_it() -> None:
    spec, batch = minilm(), BatchShape(8, 64, False, 32)
    terms = TermGrid.top_blocks(spec.grid_shape(4), 3)
    crossed = replace(terms, trained=terms.trained.copy(), upload_bits=terms.upload_bits * 0)
    crossed.trained[-1] = False
    full, bare = (block_terms(spec, grid)[-1] for grid in (terms, crossed))
    adapters = 4 * batch.tokens * (spec.hidden + 2 * 4)  # the input of A, and two of B
    assert block_bytes(spec, full, batch) - block_bytes(spec, bare, batch) == adapters


def test_packing_takes_whole_groups_of_64_and_4_bytes_more_for_each() -> None:
    saved = SavedTensor(64 * 20 + 1, 32)
    assert [saved.held_bytes(bits) for bits in (32, 8, 4)] == [4 * 1281, 21 * 68, 21 * 36]


def test_small_and_exact_tensors_are_held_as_computed() -> None:
    assert SavedTensor(SMALLEST_PACKED - 1, 32).held_bytes(4) == 4 * (SMALLEST_PACKED - 1)
    assert SavedTensor(4096, 32, "exact").held_bytes(4) == 4 * 4096


def test_query_key_and_value_never_go_below_8_bits() -> None:
    query = SavedTensor(4096, 32, "attention")
    assert query.held_bytes(4) == query.held_bytes(8) == 4096 + 64 * 4
