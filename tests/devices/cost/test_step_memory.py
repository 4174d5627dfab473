from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from devices.cost.blocks import BatchShape, block_terms
from devices.cost.memory import BlockWork, held_bytes, step_memory
from devices.cost.model import MemoryBreakdown
from devices.models.spec import ModelSpec
from devices.vocabulary.plan import TermGrid, TrainingPlan, WeightFormat
from tests.devices.cost.specs import BERT_LINEARS, make_plan, minilm, smollm

BATCH = BatchShape(16, 32, is_padded=True, bits=32)
MINILM_SHAPE = (6, 2, 8)


def memory_of(model: ModelSpec, plan: TrainingPlan, batch: BatchShape = BATCH) -> MemoryBreakdown:
    return step_memory(model, plan, batch)


def minilm_memory(depth: int, *, activation_bits: int = 32) -> MemoryBreakdown:
    terms = TermGrid.top_blocks(MINILM_SHAPE, depth)
    return memory_of(minilm(), make_plan(minilm(), terms, activation_bits=activation_bits))


@pytest.mark.parametrize(
    ("weight_format", "megabytes"),
    [("fp32", 42.5), ("fp16", 21.2), ("int8", 11.3), ("int4", 6.0), ("nf4", 5.6)],
)
def test_minilm_matrices_take_the_bytes_of_their_format(
    weight_format: WeightFormat, megabytes: float
) -> None:
    terms = TermGrid.top_blocks(MINILM_SHAPE, 6)
    plan = make_plan(minilm(), terms, weight_format=weight_format)
    num_matrix = 6 * (4 * 384**2 + 2 * 384 * 1536)
    num_all = 22_713_216  # parameters of the published model, pooler included
    rest_bytes = 4 * (num_all - num_matrix)
    assert (memory_of(minilm(), plan).weights - rest_bytes) / 1e6 == pytest.approx(
        megabytes, abs=0.05
    )


def test_each_block_is_charged_at_its_own_format() -> None:
    plan = make_plan(minilm(), TermGrid.top_blocks(MINILM_SHAPE, 6))
    mixed = replace(plan, weight_formats=("int8", *plan.weight_formats[1:]))
    num_weights = 4 * 384**2 + 2 * 384 * 1536
    less = memory_of(minilm(), plan).weights - memory_of(minilm(), mixed).weights
    assert less == 4 * num_weights - (num_weights + num_weights // 64 * 4)


def test_adapters_gradients_and_moments_count_held_and_trained_terms_and_the_head() -> None:
    held = np.zeros(MINILM_SHAPE, dtype=bool)
    held[:, :, :5] = True
    trained = np.zeros(MINILM_SHAPE, dtype=bool)
    trained[4:, 0, :3] = True
    terms = TermGrid(held, trained, np.zeros(MINILM_SHAPE, dtype=np.uint8))
    memory = memory_of(minilm(), make_plan(minilm(), terms))
    head, term = 384 * 16 + 16, 2 * 384
    assert memory.adapters == 4 * (6 * 2 * 5 * term + head)
    assert memory.gradients == 4 * (2 * 3 * term + head)
    assert memory.optimizer == 2 * memory.gradients


def test_the_total_is_the_sum_of_the_parts() -> None:
    memory = minilm_memory(3)
    assert memory.total == sum(getattr(memory, part.name) for part in fields(memory))


def test_activations_grow_by_one_block_with_each_block_of_depth() -> None:
    held = [minilm_memory(depth).activations for depth in range(7)]
    lowest, *others = np.diff(held)
    assert held[0] == 0
    assert len(set(others)) == 1
    assert 0 < lowest < others[0]  # the lowest trained block passes no gradient on


def test_fewer_bits_never_need_more() -> None:
    totals = {
        bits: [minilm_memory(depth, activation_bits=bits).total for depth in range(1, 7)]
        for bits in (32, 8, 4)
    }
    for depth in range(6):
        assert totals[4][depth] < totals[8][depth] < totals[32][depth]
    # A single block that is computed again is held as computed then, beside its input.
    recomputed = [minilm_memory(depth, activation_bits=0).total for depth in range(1, 7)]
    assert recomputed[0] >= totals[32][0]
    assert recomputed[-1] < totals[4][-1]


def test_a_packed_block_near_the_input_saves_more_than_one_near_the_output() -> None:
    plan = make_plan(minilm(), TermGrid.top_blocks(MINILM_SHAPE, 6))
    lowest, topmost = (
        memory_of(minilm(), replace(plan, activation_bits=bits))
        for bits in ((8, *[32] * 5), (*[32] * 5, 8))
    )
    unpacked = memory_of(minilm(), plan)
    assert lowest.transient == unpacked.transient
    assert unpacked.total > topmost.total > lowest.total


def test_a_block_computed_again_holds_its_input_and_all_of_them_one_mask() -> None:
    held = [minilm_memory(depth, activation_bits=0).activations for depth in range(4)]
    narrow, mask = 4 * BATCH.tokens * 384, 4 * BATCH.tokens * BATCH.length
    assert held == [0, *(mask + depth * narrow for depth in (1, 2, 3))]


def test_packing_blocks_below_the_depth_changes_nothing() -> None:
    plan = make_plan(minilm(), TermGrid.top_blocks(MINILM_SHAPE, 2))
    for bits in (8, 0):
        packed = replace(plan, activation_bits=(bits,) * 4 + (32, 32))
        assert memory_of(minilm(), packed) == memory_of(minilm(), plan)


def test_a_head_without_a_trained_block_needs_one_forward_pass_at_a_time() -> None:
    memory = minilm_memory(0)
    tokens = 512
    wide, narrow, scores, mask = tokens * 1536, tokens * 384, tokens * 32 * 12, tokens * 32
    assert memory.activations == 0
    # A block's input and the embedded texts, its attention's output and scores, GELU's in and out.
    assert memory.transient + memory.head == 4 * (2 * wide + 3 * narrow + scores + mask)


def test_half_width_halves_what_products_leave_behind() -> None:
    plan = make_plan(minilm(BERT_LINEARS), TermGrid.top_blocks((6, 6, 8), 6))
    full = memory_of(minilm(BERT_LINEARS), plan)
    half = memory_of(minilm(BERT_LINEARS), plan, BATCH._replace(bits=16))
    assert 2 * half.activations == full.activations
    assert half.weights == full.weights


def test_long_texts_make_the_scores_of_eager_attention_the_peak() -> None:
    long = BatchShape(2, 512, is_padded=True, bits=32)
    terms = TermGrid.top_blocks(MINILM_SHAPE, 6)
    eager, flash = (
        memory_of(model, make_plan(model, terms), long)
        for model in (minilm(), minilm(attention="sdpa"))
    )
    scores = 4 * 2 * 12 * 512**2
    assert eager.activations - flash.activations > 5 * scores
    assert eager.transient > scores > flash.transient


@pytest.mark.parametrize("depth", [1, 3])
def test_llama_holds_its_rotary_tables_once(depth: int) -> None:
    model = smollm()
    terms = TermGrid.top_blocks(model.grid_shape(4), depth)
    blocks = sum(
        held_bytes(model, BlockWork(block, 32, "fp32"), BATCH)
        for block in block_terms(model, terms)
    )
    tables = 4 * 2 * 32 * 64  # cosine and sine of 32 positions and head width 64
    assert memory_of(model, make_plan(model, terms)).activations == blocks + tables
