"""Counts the FLOPs of one training step in closed form, two for each multiply-add.

T = b s tokens, h hidden width, r held terms, L blocks. Only matrix products count, as in torch's
own FlopCounterMode, against which these forms are tested. The tables of rotary positions do not,
which transformers before 5.20 computes by a product.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from devices.cost.blocks import BatchShape, BlockTerms, gradient_flow
from devices.models.spec import ModelSpec


def forward_flops(model: ModelSpec, blocks: Sequence[BlockTerms], batch: BatchShape) -> int:
    """Return the FLOPs of the forward pass of all blocks and the head."""
    return _head_forward(model, batch) + sum(
        num_equal * _block_forward(model, block, batch)
        for block, num_equal in Counter(blocks).items()
    )


def backward_flops(model: ModelSpec, blocks: Sequence[BlockTerms], batch: BatchShape) -> int:
    """Return the FLOPs of the backward pass: of the head, and of all blocks that it crosses.

    A frozen weight costs one product (the gradient of its input), and none where that input needs
    no gradient.
    """
    crossed = [block for block in blocks if block.position != "below"]
    return _head_backward(model, batch, crosses=bool(crossed)) + sum(
        num_equal * _block_backward(model, block, batch)
        for block, num_equal in Counter(crossed).items()
    )


def recomputed_flops(
    model: ModelSpec,
    blocks: Sequence[BlockTerms],
    activation_bits: Sequence[int],
    batch: BatchShape,
) -> int:
    """Return the FLOPs of the blocks that the backward pass computes again, those of 0 bits."""
    return sum(
        _block_forward(model, block, batch)
        for block, bits in zip(blocks, activation_bits, strict=True)
        if bits == 0 and block.position != "below"
    )


def _attention_product(model: ModelSpec, batch: BatchShape) -> int:
    """Return the FLOPs of one of attention's two products, for all heads: 2 b s^2 h."""
    return 2 * batch.tokens * batch.length * model.linears[0].out_features


def _block_forward(model: ModelSpec, block: BlockTerms, batch: BatchShape) -> int:
    """Return 2 T (in out + r (in + out)) for each layer, and attention's two products."""
    layers = sum(
        layer.num_weights + held * (layer.in_features + layer.out_features)
        for layer, held in zip(model.linears, block.held, strict=True)
    )
    return 2 * batch.tokens * layers + 2 * _attention_product(model, batch)


def _block_backward(model: ModelSpec, block: BlockTerms, batch: BatchShape) -> int:
    flow = gradient_flow(block)
    layers = 0
    for index, layer in enumerate(model.linears):
        held, trains_a, trains_b = block.held[index], block.trains_a[index], block.trains_b[index]
        if flow.inputs[index]:
            layers += layer.num_weights + held * layer.in_features  # dX through W and through A
        if flow.inputs[index] or trains_a:
            layers += held * layer.out_features  # gradient of A x
        layers += held * (trains_a * layer.in_features + trains_b * layer.out_features)  # dA, dB
    return 2 * batch.tokens * layers + _attention_backward(model, block, batch)


def _attention_backward(model: ModelSpec, block: BlockTerms, batch: BatchShape) -> int:
    """Return the FLOPs of attention's backward pass.

    Eager code makes four products, fewer where an operand is frozen. Flash attention makes five.
    """
    query, key, value = gradient_flow(block).outputs[:3]
    products = query + key + value + (query or key)
    if products and model.attention == "sdpa":
        products = 5  # one more than the four, since flash attention computes the scores again
    return products * _attention_product(model, batch)


def _head_forward(model: ModelSpec, batch: BatchShape) -> int:
    """Return the FLOPs of the head.

    One token of each sequence passes a dense layer and the output layer; in Llama all T pass the
    output layer, whatever the head is for.
    """
    scores = 2 * model.hidden * model.head.num_outputs
    if model.form == "llama":
        return batch.tokens * scores
    return batch.size * (2 * model.hidden**2 + scores)


def _head_backward(model: ModelSpec, batch: BatchShape, *, crosses: bool) -> int:
    """Return the FLOPs of the head's backward pass.

    They are those of the output layer's own gradient, which a frozen one has none of, and of its
    input's if a block is trained. RoBERTa's dense layer is trained, so its own gradient and that of
    the output layer's input are always needed; BERT's pooler is frozen.
    """
    scores = 2 * model.hidden * model.head.num_outputs
    dense = 2 * model.hidden**2
    if model.form == "llama":
        return batch.tokens * scores * (model.head.is_trained + crosses)
    if model.family != "bert":
        return batch.size * (2 * scores + dense * (1 + crosses))
    return batch.size * (scores + (scores + dense) * crosses)
