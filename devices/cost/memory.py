"""Bytes held at the peak of one training step, in closed form.

T = b s tokens, h hidden width, f feed-forward width, n heads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from operator import add
from typing import NamedTuple

from devices.cost.blocks import Batch, BlockTerms, block_terms
from devices.cost.model import MemoryBreakdown
from devices.cost.saved import (
    GROUP,
    block_tensors,
    head_tensors,
    raw_bytes,
    rotary_tensors,
)
from devices.model_spec import LinearSpec, ModelSpec
from devices.plan import BlockFormat, TrainingPlan

FORMAT_BITS: dict[BlockFormat, int] = {
    "fp32": 32,
    "fp16": 16,
    "int8": 8,
    "int4": 4,
    "nf4": 4,
    "absent": 0,
}
GROUP_BYTES: dict[BlockFormat, int] = {
    "fp32": 0,
    "fp16": 0,
    "int8": 4,
    "int4": 4,
    "nf4": 2,
    "absent": 0,
}
"""For each group of 64: an fp16 scale, and an fp16 zero where the format has one."""
FP32_BYTES = 4
MOMENTS_BYTES = 8
"""AdamW's two fp32 moments of one trained parameter."""


class BlockWork(NamedTuple):
    """One block, as far as its memory goes."""

    terms: BlockTerms
    activation_bits: int
    weight_format: BlockFormat


def step_memory(model: ModelSpec, plan: TrainingPlan, batch: Batch) -> MemoryBreakdown:
    """The peak of a training step, once the optimizer has its state.

    While block i works, in either pass, those above it hold nothing: they have not run yet, or
    backward is done with them. So the peak is the largest, over i, of what blocks up to i hold and
    block i needs besides. Activations are those of all blocks, and the rest is transient.
    """
    blocks = block_terms(model, plan.terms)
    works = list(map(BlockWork, blocks, plan.activation_bits, plan.weight_formats))
    held = {work: held_bytes(model, work, batch) for work in dict.fromkeys(works)}
    working = {work: _working_bytes(model, work, batch) for work in held}
    rotary = raw_bytes(rotary_tensors(model, blocks, batch))
    held_up_to = list(accumulate(held[work] for work in works))
    peak = rotary + max(map(add, held_up_to, (working[work] for work in works)))
    activations = rotary + held_up_to[-1]
    head = _head_bytes(model, blocks, batch)
    trained = model.trained_parameters(plan.terms)
    held_numbers = model.head_parameters + model.term_parameters(plan.terms.held)
    origin = trained * (plan.proximal_mu > 0)  # what a proximal loss measures the distance from
    return MemoryBreakdown(
        weights=_weight_bytes(model, plan.weight_formats),
        adapters=FP32_BYTES * (held_numbers + origin),
        gradients=FP32_BYTES * trained,
        optimizer=MOMENTS_BYTES * trained,
        activations=activations,
        # What the head saves comes after the forward passes, and is gone before the backward ones.
        transient=max(peak - activations - head, 0),
        head=head,
    )


def matrix_bytes(layer: LinearSpec, weight_format: BlockFormat) -> int:
    """One frozen matrix at rest: codes, and what each group of them needs."""
    codes = layer.num_weights * FORMAT_BITS[weight_format] // 8
    return codes + -(-layer.num_weights // GROUP) * GROUP_BYTES[weight_format]


def _weight_bytes(model: ModelSpec, formats: Sequence[BlockFormat]) -> int:
    """All frozen weights. Embedding, biases, norms and pooler are fp32 whatever the plan."""
    biases = sum(layer.out_features for layer in model.linears if layer.bias)
    fp32 = model.embedding_parameters + model.frozen_head_parameters
    fp32 += model.num_blocks * (biases + model.norm_parameters)
    return FP32_BYTES * fp32 + sum(
        num_equal * matrix_bytes(layer, weight_format)
        for weight_format, num_equal in Counter(formats).items()
        for layer in model.linears
    )


def held_bytes(model: ModelSpec, work: BlockWork, batch: Batch) -> int:
    """What one block holds from its forward to its backward pass, packed where planned."""
    halves = block_tensors(model, work.terms, batch)
    return sum(tensor.held_bytes(work.activation_bits) for half in halves for tensor in half)


def _working_bytes(model: ModelSpec, work: BlockWork, batch: Batch) -> int:
    """What one block needs beyond what is held, while its forward or backward pass runs.

    Forward pass without a backward pass: two tensors of width f (three with a gate, one more under
    an adapter), four of width h, and the scores. Otherwise what a packed block saves, as computed;
    and the gradients of a product of width f, or of the scores once the tensors of the
    feed-forward half are gone. A weight that is not at the width of the products is converted
    beside them. Our reconstruction, fitted to measured peaks: docs/costs.md says how well.
    """
    wide = batch.num_bytes(batch.tokens * model.ffn)
    narrow = batch.num_bytes(batch.tokens * model.hidden)
    is_gated = model.family == "llama"
    scores = batch.num_bytes(batch.tokens * batch.length * model.num_heads)
    scores *= model.attention == "eager"
    converted = max(layer.num_weights for layer in model.linears)
    weight = batch.num_bytes(converted) * (FORMAT_BITS[work.weight_format] != batch.bits)
    if work.terms.position == "below":
        num_wide = 2 + is_gated + (work.terms.held[-2] > 0)
        return num_wide * wide + 4 * narrow + scores
    attention, feed_forward = map(raw_bytes, block_tensors(model, work.terms, batch))
    is_packed = work.activation_bits < 32
    num_wide = 2 + (is_gated and not work.terms.trains_a[-1])  # its input is gone if it was saved
    num_scores = 2 + is_packed
    largest = max(num_wide * wide, num_scores * scores - feed_forward, wide + weight)
    return narrow + largest + (attention + feed_forward) * is_packed


def _head_bytes(model: ModelSpec, blocks: Sequence[BlockTerms], batch: Batch) -> int:
    """Logits and loss, and what head and loss save."""
    results = batch.num_bytes(batch.size * model.num_classes + 1)
    return results + raw_bytes(head_tensors(model, blocks, batch))
