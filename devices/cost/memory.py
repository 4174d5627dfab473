"""Bytes held at the peak of one training step, in closed form.

T = b s tokens, h hidden width, f feed-forward width, n heads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from devices.cost.blocks import Batch, BlockTerms, block_terms
from devices.cost.model import MemoryBreakdown
from devices.cost.saved import (
    block_tensors,
    head_tensors,
    position_tensors,
    raw_bytes,
    rotary_tensors,
)
from devices.cost.working import Peaks, block_peaks
from devices.models.families import LinearSpec
from devices.models.spec import ModelSpec
from devices.vocabulary.number_formats import FP32_BYTES, GROUP
from devices.vocabulary.plan import BlockFormat, TrainingPlan

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
MOMENTS_BYTES = 8
"""AdamW's two fp32 moments of one trained parameter."""


class BlockWork(NamedTuple):
    """One block, as far as its memory goes."""

    terms: BlockTerms
    activation_bits: int
    weight_format: BlockFormat

    @property
    def is_recomputed(self) -> bool:
        """Whether its input is all that it saves."""
        return self.activation_bits == 0 and self.terms.position != "below"


class BlockMemory(NamedTuple):
    """What one block holds from pass to pass, and what it needs besides while it works."""

    held: int
    peaks: Peaks


class Surroundings(NamedTuple):
    """Bytes that are there whatever a block does."""

    shared: int  # held by all blocks together, from pass to pass
    first: int  # while the first block runs forward, besides its input
    later: int  # while any other does
    head: int


def step_memory(model: ModelSpec, plan: TrainingPlan, batch: Batch) -> MemoryBreakdown:
    """The peak of a training step, once the optimizer has its state.

    While block i works, in either pass, those above it hold nothing: they have not run yet, or
    backward is done with them. So the peak is the largest, over i, of what blocks up to i hold and
    block i needs besides. Activations are those of all blocks, and the rest is transient.
    """
    blocks = block_terms(model, plan.terms)
    works = list(map(BlockWork, blocks, plan.activation_bits, plan.weight_formats))
    memory = {work: _block_memory(model, work, batch) for work in set(works)}  # few differ
    entry, embedded = (
        _entry_bytes(model, works, batch),
        batch.num_bytes(batch.tokens * model.hidden),
    )
    around = Surroundings(
        shared=_shared_bytes(model, works, batch),
        first=entry,
        later=entry + embedded,
        head=_head_bytes(model, blocks, batch),
    )
    return whole_memory(model, plan, [memory[work] for work in works], around)


def whole_memory(
    model: ModelSpec,
    plan: TrainingPlan,
    blocks: Sequence[BlockMemory],
    around: Surroundings,
) -> MemoryBreakdown:
    """The peak of a step, from what each block holds and needs and what there is around them."""
    below = [0, *accumulate(block.held for block in blocks)]
    beside = [around.first, *[around.later] * (len(blocks) - 1)]
    peak = around.shared + max(
        held_below + max(block.peaks.forward + entry, block.peaks.backward)
        for held_below, block, entry in zip(below, blocks, beside, strict=False)
    )
    activations = around.shared + below[-1]
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
        transient=max(peak - activations - around.head, 0),
        head=around.head,
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


@lru_cache(maxsize=1024)
def _block_memory(model: ModelSpec, work: BlockWork, batch: Batch) -> BlockMemory:
    """Remembered, since a scheduler asks for many plans of few kinds of blocks."""
    return BlockMemory(held_bytes(model, work, batch), _peaks(model, work, batch))


def held_bytes(model: ModelSpec, work: BlockWork, batch: Batch) -> int:
    """What one block holds from its forward to its backward pass, as planned."""
    if work.is_recomputed:
        return batch.num_bytes(batch.tokens * model.hidden)
    halves = block_tensors(model, work.terms, batch)
    return sum(tensor.held_bytes(work.activation_bits) for half in halves for tensor in half)


def _peaks(model: ModelSpec, work: BlockWork, batch: Batch) -> Peaks:
    return block_peaks(
        model,
        work.terms,
        batch,
        bits=work.activation_bits,
        weight_bits=FORMAT_BITS[work.weight_format],
    )


def _shared_bytes(model: ModelSpec, works: Sequence[BlockWork], batch: Batch) -> int:
    """Held once, whatever the number of blocks: rotary tables, and what blocks that are computed
    again are called with."""
    blocks = [work.terms for work in works]
    if not any(work.is_recomputed for work in works):
        return raw_bytes(rotary_tensors(model, blocks, batch))
    return _mask_bytes(model, batch) + raw_bytes(position_tensors(model, batch))


def _mask_bytes(model: ModelSpec, batch: Batch) -> int:
    """(b, s, s): numbers to add to the scores, or for flash attention one byte each, if any.

    MPNet adds another for each head, by the distance of two tokens.
    """
    elements = batch.tokens * batch.length
    biases = elements * model.num_heads * (model.family == "mpnet")
    if not batch.is_padded and model.form == "bert":
        return batch.num_bytes(biases)
    if model.attention == "eager":
        return batch.num_bytes(elements + biases)
    return elements * batch.is_padded


def _entry_bytes(model: ModelSpec, works: Sequence[BlockWork], batch: Batch) -> int:
    """What the model's own code keeps through all forward passes."""
    return _mask_bytes(model, batch) if not any(w.is_recomputed for w in works) else 0


def _head_bytes(model: ModelSpec, blocks: Sequence[BlockTerms], batch: Batch) -> int:
    """Logits and loss, and what head and loss save."""
    results = batch.num_bytes(batch.size * model.num_classes + 1)
    return results + raw_bytes(head_tensors(model, blocks, batch))
