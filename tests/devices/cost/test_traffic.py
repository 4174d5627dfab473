"""The bytes that the operators of a block move agree with what torch's dispatcher sees."""

from __future__ import annotations

from dataclasses import replace

import pytest

from devices.cost.blocks import BatchShape, block_terms
from devices.cost.traffic import Traffic, step_traffic
from devices.models.spec import Attention, ModelSpec
from devices.vocabulary.plan import TermGrid
from tests.devices.cost.specs import (
    BERT_LINEARS,
    LINEARS,
    LLAMA_LINEARS,
    attentions,
    make_plan,
    minilm,
)
from tests.devices.cost.torch_measures import RANK, Shape, load
from tests.devices.cost.traffic_measures import BlockBytes, top_block_traffic

SHAPE = Shape(num_blocks=2, hidden=192, num_heads=6, num_kv_heads=2, ffn=512)
TARGETS = {
    "bert": (("query", "value"), BERT_LINEARS, ("output.dense",)),
    "roberta": (("query", "value"),),
    **{family: (LINEARS[family][:3:2],) for family in ("distilbert", "mpnet", "qwen3")},
    "llama": (("q_proj", "v_proj"), LLAMA_LINEARS, ("down_proj",)),
}


def traffic(spec: ModelSpec, depth: int, batch: BatchShape, bits: tuple[int, ...]) -> Traffic:
    terms = TermGrid.top_blocks(spec.grid_shape(RANK), depth)
    plan = replace(make_plan(spec, terms), activation_bits=bits)
    return step_traffic(spec, plan, block_terms(spec, terms), batch)


def top_block(spec: ModelSpec, depth: int, batch: BatchShape) -> BlockBytes:
    """Return the bytes that the last block adds to a model of one block less, or by being
    trained."""
    whole = traffic(spec, depth, batch, (32,) * spec.num_blocks)
    if depth == 1:
        return BlockBytes(whole.forward // spec.num_blocks, whole.backward)
    below = traffic(replace(spec, num_blocks=1), 1, batch, (32,))
    return BlockBytes(whole.forward - below.forward, whole.backward - below.backward)


@pytest.mark.parametrize("is_padded", [True, False])
@pytest.mark.parametrize(
    ("family", "targets", "attention"),
    [
        (family, targets, attention)
        for family, choices in TARGETS.items()
        for targets in choices
        for attention in attentions(family)
    ],
    ids=lambda value: value if isinstance(value, str) else str(len(value)),
)
def test_bytes_moved_are_within_2_percent_of_what_operators_read_and_write(
    family: str, targets: tuple[str, ...], attention: Attention, is_padded: bool
) -> None:
    measured = load(family, SHAPE, targets, attention=attention)
    batch = BatchShape(4, 64, is_padded, bits=32)
    for depth in (1, 2):
        found = top_block_traffic(measured, batch, depth=depth)
        charged = top_block(measured.spec, depth, batch)
        # Left out are the smallest tensors: statistics of norms, biases, gradients of scales.
        assert charged.forward == pytest.approx(found.forward, rel=0.02)
        assert charged.backward == pytest.approx(found.backward, rel=0.02)


def test_a_block_computed_again_moves_its_forward_bytes_in_the_backward_pass() -> None:
    spec, batch = minilm(), BatchShape(16, 32, True, 32)
    kept, again = (traffic(spec, 6, batch, (bits,) * 6) for bits in (32, 0))
    assert again.forward == kept.forward
    assert again.backward == kept.backward + kept.forward
    assert again.quantize == 0
