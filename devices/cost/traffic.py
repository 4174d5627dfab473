"""Bytes that one training step moves through the device's memory, in closed form.

Each operator of a block reads its operands and writes its result, as PyTorch runs them: one by one,
nothing fused, caches save nothing. Counted operator by operator, and held against what torch's
dispatcher sees (``docs/costs.md``). Embedding and head are left out: a few hundredths of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

from devices.cost.blocks import Batch, BlockTerms, gradient_flow
from devices.cost.memory import FORMAT_BITS, BlockWork, matrix_bytes
from devices.cost.saved import block_tensors
from devices.models.spec import ModelSpec
from devices.vocabulary.number_formats import FP32_BYTES
from devices.vocabulary.plan import TrainingPlan

ADAMW_ACCESSES = 7
"""Of fp32 values, per trained parameter: it, its gradient and two moments are read; it and the
moments are written. A proximal loss reads its start besides."""
RMS_NORM_BACKWARD = 19
"""Tensors of width h that the operators of an RMS norm read and write in its backward pass."""


class Traffic(NamedTuple):
    """Bytes read and written in one step, by phase."""

    forward: int
    backward: int
    cast: int  # weights of at least 8 bits, at another width than the products'
    unpacked: int  # weights of 4 bits
    packed: int  # activations, both ways
    optimizer: int

    @property
    def quantize(self) -> int:
        """Of all conversions."""
        return self.cast + self.unpacked + self.packed


def step_traffic(
    model: ModelSpec, plan: TrainingPlan, blocks: Sequence[BlockTerms], batch: Batch
) -> Traffic:
    """Of all blocks, and of AdamW on the trained terms and the head."""
    works = Counter(map(BlockWork, blocks, plan.activation_bits, plan.weight_formats))
    passes = [(_passes(model, work, batch), count) for work, count in works.items()]
    return Traffic(
        forward=sum(block.forward * count for block, count in passes),
        backward=sum(block.backward * count for block, count in passes),
        cast=sum(block.cast * count for block, count in passes),
        unpacked=sum(block.unpacked * count for block, count in passes),
        packed=sum(block.packed * count for block, count in passes),
        optimizer=optimizer_bytes(model, plan),
    )


def optimizer_bytes(model: ModelSpec, plan: TrainingPlan) -> int:
    """Of AdamW on everything that trains."""
    accesses = ADAMW_ACCESSES + (plan.proximal_mu > 0)
    return accesses * FP32_BYTES * model.trained_parameters(plan.terms)


@lru_cache(maxsize=1024)
def _passes(model: ModelSpec, work: BlockWork, batch: Batch) -> Traffic:
    """Of one block, without the optimizer. Remembered, since a scheduler asks for many plans of few
    kinds of blocks."""
    converted = _converted_weights(model, work, batch)
    is_small = FORMAT_BITS[work.weight_format] < 8
    return Traffic(
        forward=_forward(model, work.terms, batch),
        backward=_backward(model, work, batch),
        cast=0 if is_small else converted,
        unpacked=converted if is_small else 0,
        packed=_packed_activations(model, work, batch),
        optimizer=0,
    )


def _forward(model: ModelSpec, block: BlockTerms, batch: Batch) -> int:
    layers = sum(
        batch.tokens * (layer.in_features + layer.out_features) + layer.num_weights
        for layer in model.linears
    ) + sum(
        batch.tokens * (layer.in_features + 6 * layer.out_features + 2 * held)
        + held * (layer.in_features + layer.out_features)
        for layer, held in zip(model.linears, block.held, strict=True)
        if held
    )
    return batch.num_bytes(
        layers + _pointwise_forward(model, batch) + _attention_forward(model, batch)
    )


def _pointwise_forward(model: ModelSpec, batch: Batch) -> int:
    """Two residual sums (3 h a token), two norms and the activation function.

    A layer norm is one operator, an RMS norm four: the square, its mean, and two products. Rotating
    a query or key takes six.
    """
    if model.form != "llama":
        return batch.tokens * ((6 + 4) * model.hidden + 2 * model.ffn)
    rotated = sum(layer.out_features for layer in model.linears[:2])
    by_head = 10 + 7 * (model.family == "qwen3")  # its queries and keys have norms of their own
    return batch.tokens * ((6 + 14) * model.hidden + 5 * model.ffn + by_head * rotated)


def _attention_forward(model: ModelSpec, batch: Batch) -> int:
    """Operands are first brought in order, and keys and values repeated for each query head.

    Then two products, and between them the scale, the mask and the softmax; or flash attention.
    """
    queries, keys, scores = _attention_elements(model, batch)
    mask, is_llama = batch.tokens * batch.length, model.form == "llama"
    repeats = 2 * (queries + keys)
    if model.attention == "sdpa":
        read = 2 * queries + 2 * (queries if batch.is_padded else keys)
        return read + (repeats * is_llama + 2 * mask) * batch.is_padded
    masked = (2 * scores + mask) * (batch.is_padded or is_llama)
    masked += 3 * scores * (model.family == "mpnet")  # its bias is added in place
    return 8 * queries + (repeats if is_llama else 4 * queries) + 6 * scores + masked


def _attention_elements(model: ModelSpec, batch: Batch) -> tuple[int, int, int]:
    """Of the queries, the keys and the scores b n s^2."""
    queries, keys = (batch.tokens * layer.out_features for layer in model.linears[:2])
    return queries, keys, batch.tokens * batch.length * model.num_heads


def _backward(model: ModelSpec, work: BlockWork, batch: Batch) -> int:
    """Of each operator whose input needs a gradient; a block that kept nothing runs forward first.

    Where several gradients of one tensor meet, each sum moves three tensors.
    """
    block = work.terms
    if block.position == "below":
        return 0
    again = _forward(model, block, batch) if work.is_recomputed else 0
    layers = sum(_layer_backward(model, block, batch, index) for index in range(len(block.held)))
    rest = _pointwise_backward(model, block, batch) + _attention_backward(model, block, batch)
    return again + batch.num_bytes(layers + rest)


def _layer_backward(model: ModelSpec, block: BlockTerms, batch: Batch, index: int) -> int:
    layer, held, tokens = model.linears[index], block.held[index], batch.tokens
    passes, trains = gradient_flow(block).inputs[index], block.trained[index] > 0
    width_in, width_out = layer.in_features, layer.out_features
    moved = (tokens * (width_in + width_out) + layer.num_weights) * passes
    if held and (passes or trains):
        by_a, by_b = (tokens * (width + held) + held * width for width in (width_in, width_out))
        trains_a = block.trains_a[index]
        moved += 2 * tokens * width_out + by_b * ((passes or trains_a) + trains) + by_a * trains_a
        moved += (by_a + 3 * tokens * width_in) * passes
    return moved


def _pointwise_backward(model: ModelSpec, block: BlockTerms, batch: Batch) -> int:
    flow, hidden = gradient_flow(block), model.hidden
    middle, first = flow.inputs[4], flow.inputs[0]
    # Sums: of query, key and value at the block's input, and of each half with its residual.
    num_sums = 2 * first + middle + first
    if model.form != "llama":
        widths = 3 * (middle + flow.outputs[5] + num_sums) * hidden
        return batch.tokens * (widths + 3 * model.ffn * flow.outputs[4])
    gate, up = flow.outputs[4:6]
    rotated = sum(
        layer.out_features * needs
        for layer, needs in zip(model.linears[:2], flow.outputs[:2], strict=True)
    )
    widths = (RMS_NORM_BACKWARD * (first + middle) + 3 * (num_sums + middle)) * hidden
    by_head = 14 + RMS_NORM_BACKWARD * (model.family == "qwen3")
    return batch.tokens * (widths + (6 * gate + 3 * up) * model.ffn + by_head * rotated)


def _attention_backward(model: ModelSpec, block: BlockTerms, batch: Batch) -> int:
    query, key, value = gradient_flow(block).outputs[:3]
    queries, keys, scores = _attention_elements(model, batch)
    if not (query or key or value):
        return 0
    is_llama = model.form == "llama"
    repeated = (key + value) * is_llama
    if model.attention == "sdpa" and not batch.is_padded:
        return 4 * (queries + keys) + 2 * (queries * query + keys * key) * is_llama
    if model.attention == "sdpa":
        ordered = 2 * queries * query * is_llama + 2 * keys * repeated
        return 8 * queries + batch.tokens * batch.length + ordered + (queries + keys) * repeated
    softmax = query or key
    products = (query + key + value + softmax) * (scores + 2 * queries) + 5 * scores * softmax
    ordered = 2 * queries * (1 + query) + 2 * keys * (key + value)
    return products + ordered + (queries + keys) * repeated


def _converted_weights(model: ModelSpec, work: BlockWork, batch: Batch) -> int:
    """Matrices at another width than the products': once in each forward pass, and once more where
    the backward pass multiplies by them."""
    if FORMAT_BITS[work.weight_format] == batch.bits:
        return 0
    needs = zip(model.linears, gradient_flow(work.terms).inputs, strict=True)
    return sum(
        (1 + work.is_recomputed + is_needed)
        * (matrix_bytes(layer, work.weight_format) + batch.num_bytes(layer.num_weights))
        for layer, is_needed in needs
    )


def _packed_activations(model: ModelSpec, work: BlockWork, batch: Batch) -> int:
    """Read as computed and written packed; then read packed and written as computed."""
    if work.is_recomputed:
        return 0
    tensors = chain.from_iterable(block_tensors(model, work.terms, batch))
    sizes = [(tensor.raw_bytes, tensor.held_bytes(work.activation_bits)) for tensor in tensors]
    return sum(2 * (raw + held) for raw, held in sizes if held < raw)
