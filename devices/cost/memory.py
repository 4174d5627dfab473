"""Computes the bytes held at the peak of one training step, in closed form.

T = b s tokens, h hidden width, f feed-forward width, n heads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from devices.cost.blocks import BatchShape, BlockTerms, block_terms
from devices.cost.model import MemoryBreakdown
from devices.cost.optimizers import ADAMW, OptimizerCost
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
"""Bytes for each group of elements: an fp16 scale, and an fp16 zero if the format has one."""


class BlockWork(NamedTuple):
    """Block work holds the properties of one block that its memory depends on."""

    terms: BlockTerms
    activation_bits: int
    weight_format: BlockFormat

    @property
    def is_recomputed(self) -> bool:
        """Return True if the block saves its input only, and is computed again going backward."""
        return self.activation_bits == 0 and self.terms.position != "below"


class BlockMemory(NamedTuple):
    """Block memory holds the bytes of one block between its passes, and its peak in each pass."""

    held: int
    peaks: Peaks


class BesideBlocks(NamedTuple):
    """This record holds the bytes that live beside those of the blocks, by when they live."""

    shared: int  # saved once for all blocks, between the passes
    first: int  # while the first block runs forward, besides its input
    later: int  # while any other block runs forward, besides its input
    head: int  # from the head's forward pass to its backward pass
    head_peak: int  # the most while the head and the loss run, in either pass


def step_memory(
    model: ModelSpec,
    plan: TrainingPlan,
    batch: BatchShape,
    optimizer: OptimizerCost = ADAMW,
) -> MemoryBreakdown:
    """Return the memory at the peak of a training step, once the optimizer has its state.

    While block i computes, in either pass, the blocks above it hold nothing: they have not run yet,
    or the backward pass has left them. So the peak is the largest, over i, of what blocks up to i
    hold and block i needs besides, and what all blocks hold while the head runs, whose logits may
    be larger than any block. Activations are those of all blocks, and the rest is transient.
    """
    blocks = block_terms(model, plan.terms)
    works = list(map(BlockWork, blocks, plan.activation_bits, plan.weight_formats))
    memory = {work: _block_memory(model, work, batch) for work in set(works)}
    # The model's own code keeps the mask through all forward passes, unless blocks are recomputed.
    entry = 0 if any(work.is_recomputed for work in works) else _mask_bytes(model, batch)
    embedded = batch.num_bytes(batch.tokens * model.hidden)
    head = _head_bytes(model, blocks, batch)
    beside = BesideBlocks(
        shared=_shared_bytes(model, works, batch),
        first=entry,
        later=entry + embedded,
        head=head,
        head_peak=head + _head_transient(model, blocks, batch),
    )
    return whole_memory(model, plan, [memory[work] for work in works], beside, optimizer=optimizer)


def whole_memory(
    model: ModelSpec,
    plan: TrainingPlan,
    blocks: Sequence[BlockMemory],
    beside: BesideBlocks,
    *,
    optimizer: OptimizerCost,
) -> MemoryBreakdown:
    """Return the memory at the peak of a step, from that of each block and that beside them."""
    below = [0, *accumulate(block.held for block in blocks)]
    entries = [beside.first, *[beside.later] * (len(blocks) - 1)]
    peak = beside.shared + max(
        held_below + max(block.peaks.forward + entry, block.peaks.backward)
        for held_below, block, entry in zip(below, blocks, entries, strict=False)
    )
    activations = beside.shared + below[-1]
    trained = model.trained_parameters(plan.terms)
    held_numbers = model.head_parameters + model.term_parameters(plan.terms.held)
    # A proximal loss and a change of a control variate need a copy of the initial parameters.
    controlled = plan.terms.has_controls
    beside_trained = trained * ((plan.proximal_mu > 0 or controlled) + 2 * controlled)
    return MemoryBreakdown(
        weights=_weight_bytes(model, plan.weight_formats),
        adapters=FP32_BYTES * (held_numbers + beside_trained),
        gradients=FP32_BYTES * trained,
        optimizer=optimizer.state_bytes(model, plan.terms),
        activations=activations,
        # The head's tensors are made after the blocks' forward passes and freed before their
        # backward passes, so the two peaks never add up.
        transient=max(peak - activations, beside.head_peak, beside.head) - beside.head,
        head=beside.head,
    )


def matrix_bytes(layer: LinearSpec, weight_format: BlockFormat) -> int:
    """Return the bytes of one frozen matrix: its codes, and the scale and zero of each group."""
    codes = layer.num_weights * FORMAT_BITS[weight_format] // 8
    return codes + -(-layer.num_weights // GROUP) * GROUP_BYTES[weight_format]


def _weight_bytes(model: ModelSpec, formats: Sequence[BlockFormat]) -> int:
    """Return the bytes of all frozen weights.

    Embedding, biases, norms and pooler are fp32 whatever the plan.
    """
    biases = sum(layer.out_features for layer in model.linears if layer.bias)
    fp32 = model.embedding_parameters + model.frozen_head_parameters
    fp32 += model.num_blocks * (biases + model.norm_parameters)
    return FP32_BYTES * fp32 + sum(
        num_equal * matrix_bytes(layer, weight_format)
        for weight_format, num_equal in Counter(formats).items()
        for layer in model.linears
    )


@lru_cache(maxsize=1024)
def _block_memory(model: ModelSpec, work: BlockWork, batch: BatchShape) -> BlockMemory:
    """Return the memory of one block, remembered since many plans share few kinds of blocks."""
    return BlockMemory(held_bytes(model, work, batch), _peaks(model, work, batch))


def held_bytes(model: ModelSpec, work: BlockWork, batch: BatchShape) -> int:
    """Return the bytes that one block holds from its forward to its backward pass, as planned."""
    if work.is_recomputed:
        return batch.num_bytes(batch.tokens * model.hidden)
    halves = block_tensors(model, work.terms, batch)
    return sum(tensor.held_bytes(work.activation_bits) for half in halves for tensor in half)


def _peaks(model: ModelSpec, work: BlockWork, batch: BatchShape) -> Peaks:
    return block_peaks(
        model,
        work.terms,
        batch,
        bits=work.activation_bits,
        weight_bits=FORMAT_BITS[work.weight_format],
    )


def _shared_bytes(model: ModelSpec, works: Sequence[BlockWork], batch: BatchShape) -> int:
    """Return the bytes held once for all blocks.

    These are rotary tables, and the arguments of blocks that are computed again.
    """
    blocks = [work.terms for work in works]
    if not any(work.is_recomputed for work in works):
        return raw_bytes(rotary_tensors(model, blocks, batch))
    return _mask_bytes(model, batch) + raw_bytes(position_tensors(model, batch))


def _mask_bytes(model: ModelSpec, batch: BatchShape) -> int:
    """Return the bytes of the attention mask (b, s, s).

    Its elements are numbers to add to the scores, or one byte each for flash attention, which has
    a mask only for padded batches. MPNet adds a bias for each head and pair of tokens.
    """
    elements = batch.tokens * batch.length
    biases = elements * model.num_heads * (model.family == "mpnet")
    if not batch.is_padded and model.form == "bert":
        return batch.num_bytes(biases)
    if model.attention == "eager":
        return batch.num_bytes(elements + biases)
    return elements * batch.is_padded


def _head_bytes(model: ModelSpec, blocks: Sequence[BlockTerms], batch: BatchShape) -> int:
    """Return the bytes of logits and loss, and of what head and loss save.

    Where the loss converts the logits to fp32 they are let go of once it is known; the loss of each
    text stays.
    """
    saved = raw_bytes(head_tensors(model, blocks, batch))
    if model.head.has_fp32_loss:
        return FP32_BYTES * (1 + batch.size) + saved
    results = batch.num_bytes(batch.size * model.head.num_outputs + 1)
    return results + saved


def _head_transient(model: ModelSpec, blocks: Sequence[BlockTerms], batch: BatchShape) -> int:
    """Return the bytes that live beside those of ``_head_bytes`` at the head's own peak.

    For tokens that is where log-softmax runs backward: the gradient of its result and that of the
    logits, T V each in fp32. A Llama's final norm runs backward in fp32, with three or four tensors
    of T h beside the gradient that enters it. For other heads it is less than any block takes.
    """
    numbers = batch.tokens * model.hidden
    crosses = any(block.position != "below" for block in blocks)
    num_tensors = 3 + (batch.bits < 32)  # a fourth is the fp32 copy of a narrower input
    norm = (num_tensors * FP32_BYTES * numbers + batch.num_bytes(numbers)) * (
        crosses and model.form == "llama"
    )
    is_language = model.head.per == "token"
    return max(norm, 2 * FP32_BYTES * batch.tokens * model.head.num_outputs * is_language)
