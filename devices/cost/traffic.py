"""Bytes that one training step moves through the device's memory, in closed form.

Our reconstruction: no source gives it. Every tensor that an operator of a block produces is
written once and read once; weights are read once by each product; caches save nothing. Embedding
and head are left out: they are a few hundredths of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from devices.cost.blocks import Batch, BlockTerms, gradient_flow
from devices.cost.memory import FORMAT_BITS, FP32_BYTES, BlockWork, matrix_bytes
from devices.cost.saved import block_tensors, raw_bytes
from devices.model_spec import ModelSpec
from devices.plan import TrainingPlan

ADAMW_ACCESSES = 7
"""Of fp32 values, per trained parameter: it, its gradient and two moments are read; it and the
moments are written."""


class Traffic(NamedTuple):
    """Bytes read and written in one step, by phase."""

    forward: int
    backward: int
    quantize: int
    optimizer: int


def step_traffic(
    model: ModelSpec, plan: TrainingPlan, blocks: Sequence[BlockTerms], batch: Batch
) -> Traffic:
    """Of all blocks, and of AdamW on the trained terms and the head."""
    trained = model.trained_parameters(plan.terms)
    works = Counter(map(BlockWork, blocks, plan.activation_bits, plan.weight_formats)).items()
    return Traffic(
        forward=sum(_forward(model, work.terms, batch) * count for work, count in works),
        backward=sum(_backward(model, work, batch) * count for work, count in works),
        quantize=sum(_converted(model, work, batch) * count for work, count in works),
        optimizer=ADAMW_ACCESSES * FP32_BYTES * trained,
    )


def _forward(model: ModelSpec, block: BlockTerms, batch: Batch) -> int:
    weights = sum(
        layer.num_weights + held * (layer.in_features + layer.out_features)
        for layer, held in zip(model.linears, block.held, strict=True)
    )
    return batch.num_bytes(weights + 2 * _produced(model, block, batch))


def _backward(model: ModelSpec, work: BlockWork, batch: Batch) -> int:
    """A gradient for every tensor of the forward pass, what was saved, and the weights again.

    Before that a block that kept nothing runs forward a second time.
    """
    block = work.terms
    if block.position == "below":
        return 0
    again = _forward(model, block, batch) if work.is_recomputed else 0
    needs = zip(model.linears, gradient_flow(block).inputs, strict=True)
    weights = sum(layer.num_weights for layer, is_needed in needs if is_needed)
    saved = sum(map(raw_bytes, block_tensors(model, block, batch)))
    return again + saved + batch.num_bytes(weights + 2 * _produced(model, block, batch))


def _produced(model: ModelSpec, block: BlockTerms, batch: Batch) -> int:
    """Elements that the operators of one block write.

    Each linear layer's output, an adapted one's T r and its output once more; two norms and two
    sums with the residual, h each; attention's output; one tensor of width f (two with a gate); and
    without flash attention the scores before and after the softmax.
    """
    widths = sum(
        layer.out_features + (held + layer.out_features if held else 0)
        for layer, held in zip(model.linears, block.held, strict=True)
    )
    widths += 4 * model.hidden + model.linears[0].out_features
    widths += model.ffn * (2 if model.family == "llama" else 1)
    if model.attention == "eager":
        widths += 2 * batch.length * model.num_heads
    return batch.tokens * widths


def _converted(model: ModelSpec, work: BlockWork, batch: Batch) -> int:
    """Weights and activations, between how they lie and how the products take them."""
    return _converted_weights(model, work, batch) + _packed_activations(model, work, batch)


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
