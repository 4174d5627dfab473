"""Counts the bytes that one training step moves through the device's memory, in closed form.

Each operator of a block reads its operands and writes its result, one after the other as PyTorch
runs them: nothing is fused, and caches save nothing. Tests compare the counts with what torch's
dispatcher sees (``docs/costs.md``). Embedding and a head for texts are left out, a few hundredths
of the whole; a language model's head is not, whose logits may be larger than any block's tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

from devices.cost.blocks import BatchShape, BlockTerms, gradient_flow
from devices.cost.memory import FORMAT_BITS, BlockWork, matrix_bytes
from devices.cost.optimizers import ADAMW, OptimizerCost
from devices.cost.saved import block_tensors
from devices.models.spec import ModelSpec
from devices.vocabulary.number_formats import FP32_BYTES
from devices.vocabulary.plan import TrainingPlan

RMS_NORM_BACKWARD = 19
"""Tensors of the norm's width that an RMS norm reads and writes in its backward pass."""


class Traffic(NamedTuple):
    """Traffic is the bytes read and written in one training step, by phase."""

    forward: int
    backward: int
    cast: int  # conversion of weights of at least 8 bits to the operand width
    unpacked: int  # conversion of weights of 4 bits
    packed: int  # packing and unpacking of activations
    optimizer: int

    @property
    def quantize(self) -> int:
        """Return the bytes of all conversions."""
        return self.cast + self.unpacked + self.packed


def step_traffic(
    model: ModelSpec,
    plan: TrainingPlan,
    blocks: Sequence[BlockTerms],
    batch: BatchShape,
    *,
    optimizer: OptimizerCost = ADAMW,
) -> Traffic:
    """Return the traffic of all blocks, of a language model's head, and of the optimizer."""
    works = Counter(map(BlockWork, blocks, plan.activation_bits, plan.weight_formats))
    passes = [(_passes(model, work, batch), count) for work, count in works.items()]
    head = head_traffic(model, batch, crosses=any(b.position != "below" for b in blocks))
    return Traffic(
        forward=head.forward + sum(block.forward * count for block, count in passes),
        backward=head.backward + sum(block.backward * count for block, count in passes),
        cast=sum(block.cast * count for block, count in passes),
        unpacked=sum(block.unpacked * count for block, count in passes),
        packed=sum(block.packed * count for block, count in passes),
        optimizer=optimizer_bytes(model, plan, optimizer),
    )


class HeadTraffic(NamedTuple):
    """Head traffic is the bytes that the head and the loss move in each pass."""

    forward: int
    backward: int


def head_traffic(model: ModelSpec, batch: BatchShape, *, crosses: bool) -> HeadTraffic:
    """Return the traffic of a language model's output layer and loss; zero for a head for texts.

    The product reads T h and V h and writes T V. In 16 bits the logits are converted to fp32, in
    which log-softmax reads and writes them and the loss reads the result. Backward, the gradient of
    the result is written, log-softmax reads two tensors and writes one, and one product leads to
    the blocks, if a gradient crosses any.
    """
    if model.head.per != "token":
        return HeadTraffic(0, 0)
    logits = batch.tokens * model.head.num_outputs
    hidden = (batch.tokens + model.head.num_outputs) * model.hidden
    product = batch.num_bytes(hidden + logits)
    converted = (batch.num_bytes(logits) + FP32_BYTES * logits) * (batch.bits != 32)
    forward = product + converted + 3 * FP32_BYTES * logits
    backward = product + converted + 5 * FP32_BYTES * logits
    return HeadTraffic(forward, backward * crosses)


def optimizer_bytes(model: ModelSpec, plan: TrainingPlan, optimizer: OptimizerCost) -> int:
    """Return the bytes that the optimizer moves for all trained parameters.

    A proximal loss also reads the parameter's start, and a device with controls both of these.
    """
    accesses = optimizer.accesses + (plan.proximal_mu > 0) + 2 * plan.terms.has_controls
    return accesses * FP32_BYTES * model.trained_parameters(plan.terms)


@lru_cache(maxsize=1024)
def _passes(model: ModelSpec, work: BlockWork, batch: BatchShape) -> Traffic:
    """Return the traffic of one block, without the optimizer.

    It is remembered, since many plans share few kinds of blocks.
    """
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


def _forward(model: ModelSpec, block: BlockTerms, batch: BatchShape) -> int:
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


def _pointwise_forward(model: ModelSpec, batch: BatchShape) -> int:
    """Return the elements that residual sums, norms and the activation function move.

    Two residual sums move 3 h each for each token. A layer norm is one operator, an RMS norm four:
    the square, its mean, and two products. Rotating a query or key takes six.
    """
    if model.form != "llama":
        return batch.tokens * ((6 + 4) * model.hidden + 2 * model.ffn)
    rotated = sum(layer.out_features for layer in model.linears[:2])
    by_head = 10 + 7 * (model.family == "qwen3")  # Qwen3 has norms on queries and keys
    return batch.tokens * ((6 + 14) * model.hidden + 5 * model.ffn + by_head * rotated)


def _attention_forward(model: ModelSpec, batch: BatchShape) -> int:
    """Return the elements that attention moves in the forward pass.

    Operands are first made contiguous, and keys and values repeated for each query head. Then come
    two products with scale, mask and softmax between them, or flash attention.
    """
    queries, keys, scores = _attention_elements(model, batch)
    mask, is_llama = batch.tokens * batch.length, model.form == "llama"
    repeats = 2 * (queries + keys)
    if model.attention == "sdpa":
        read = 2 * queries + 2 * (queries if batch.is_padded else keys)
        return read + (repeats * is_llama + 2 * mask) * batch.is_padded
    masked = (2 * scores + mask) * (batch.is_padded or is_llama)
    masked += 3 * scores * (model.family == "mpnet")  # MPNet adds a bias in place
    return 8 * queries + (repeats if is_llama else 4 * queries) + 6 * scores + masked


def _attention_elements(model: ModelSpec, batch: BatchShape) -> tuple[int, int, int]:
    """Return the elements of the queries, of the keys and of the scores, b n s^2."""
    queries, keys = (batch.tokens * layer.out_features for layer in model.linears[:2])
    return queries, keys, batch.tokens * batch.length * model.num_heads


def _backward(model: ModelSpec, work: BlockWork, batch: BatchShape) -> int:
    """Return the bytes that one block moves in the backward pass.

    They are those of each operator whose input needs a gradient, and of a second forward pass in a
    block that is computed again. Each sum of two gradients of one tensor moves three tensors.
    """
    block = work.terms
    if block.position == "below":
        return 0
    again = _forward(model, block, batch) if work.is_recomputed else 0
    layers = sum(_layer_backward(model, block, batch, index) for index in range(len(block.held)))
    rest = _pointwise_backward(model, block, batch) + _attention_backward(model, block, batch)
    return again + batch.num_bytes(layers + rest)


def _layer_backward(model: ModelSpec, block: BlockTerms, batch: BatchShape, index: int) -> int:
    layer, held, tokens = model.linears[index], block.held[index], batch.tokens
    passes = gradient_flow(block).inputs[index]
    trains_a, trains_b = block.trains_a[index], block.trains_b[index]
    width_in, width_out = layer.in_features, layer.out_features
    moved = (tokens * (width_in + width_out) + layer.num_weights) * passes
    if held and (passes or trains_a or trains_b):
        by_a, by_b = (tokens * (width + held) + held * width for width in (width_in, width_out))
        of_b = by_b * ((passes or trains_a) + trains_b)
        moved += 2 * tokens * width_out + of_b + by_a * trains_a
        moved += (by_a + 3 * tokens * width_in) * passes
    return moved


def _pointwise_backward(model: ModelSpec, block: BlockTerms, batch: BatchShape) -> int:
    flow, hidden = gradient_flow(block), model.hidden
    middle, first = flow.inputs[4], flow.inputs[0]
    # Gradients are summed for query, key and value at the block's input (two sums), and for each
    # half of the block with its residual.
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


def _attention_backward(model: ModelSpec, block: BlockTerms, batch: BatchShape) -> int:
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


def _converted_weights(model: ModelSpec, work: BlockWork, batch: BatchShape) -> int:
    """Return the bytes of converting weights of another width than the operands.

    Each matrix is converted once in each forward pass, and once more where the backward pass
    multiplies by it.
    """
    if FORMAT_BITS[work.weight_format] == batch.bits:
        return 0
    needs = zip(model.linears, gradient_flow(work.terms).inputs, strict=True)
    return sum(
        (1 + work.is_recomputed + is_needed)
        * (matrix_bytes(layer, work.weight_format) + batch.num_bytes(layer.num_weights))
        for layer, is_needed in needs
    )


def _packed_activations(model: ModelSpec, work: BlockWork, batch: BatchShape) -> int:
    """Return the bytes of packing saved tensors and of unpacking them again."""
    if work.is_recomputed:
        return 0
    tensors = chain.from_iterable(block_tensors(model, work.terms, batch))
    sizes = [(tensor.raw_bytes, tensor.held_bytes(work.activation_bits)) for tensor in tensors]
    return sum(2 * (raw + held) for raw, held in sizes if held < raw)
