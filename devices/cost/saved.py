"""Lists the tensors that a block saves from its forward to its backward pass.

T = b s tokens, h hidden width, f feed-forward width, n heads, r held terms of a layer. Listing
tensors makes the form hold for any choice of adapted layers; ``docs/costs.md`` gives the sums.
Tests compare them to the byte with what torch saves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from devices.cost.blocks import BatchShape, BlockTerms, GradientFlow, gradient_flow
from devices.models.spec import ModelSpec
from devices.vocabulary.number_formats import GROUP, SMALLEST_PACKED

INDEX_BITS = 64
"""Bits of a label or a position."""


class SavedTensor(NamedTuple):
    """A saved tensor is kept from the forward to the backward pass."""

    elements: int
    bits: int  # bits of one element as computed
    precision: Literal["planned", "attention", "exact"] = "planned"
    name: str = ""  # the content; tensors of one name in a block are parts of one tensor

    @property
    def raw_bytes(self) -> int:
        """Return the bytes of the tensor as computed."""
        return self.elements * self.bits // 8

    def held_bytes(self, activation_bits: int) -> int:
        """Return the bytes that a plan with these bits keeps the tensor in.

        A packed tensor has whole groups, each with an fp16 scale and zero (4 bytes). Query, key and
        value are packed to no fewer than 8 bits, since flash attention computes the scores from
        them again and their noise enters an exponential.
        """
        if self.precision == "exact" or activation_bits == 32 or self.elements < SMALLEST_PACKED:
            return self.raw_bytes
        bits = max(activation_bits, 8) if self.precision == "attention" else activation_bits
        return -(-self.elements // GROUP) * (GROUP * bits // 8 + 4)


def raw_bytes(tensors: Iterable[SavedTensor]) -> int:
    """Return the bytes of tensors as computed."""
    return sum(tensor.raw_bytes for tensor in tensors)


class SavedHalves(NamedTuple):
    """Saved halves are the tensors that a block saves before and after its attention's output."""

    attention: list[SavedTensor]
    feed_forward: list[SavedTensor]


@lru_cache(maxsize=1024)
def block_tensors(model: ModelSpec, block: BlockTerms, batch: BatchShape) -> SavedHalves:
    """Return the tensors that one block saves; a block below the lowest trained one has none."""
    if block.position == "below":
        return SavedHalves([], [])
    flow = gradient_flow(block)
    adapters = _adapter_halves(model, block, batch)
    norms = (_llama_halves if model.form == "llama" else _bert_halves)(model, flow, batch)
    products = (_flash_tensors if model.attention == "sdpa" else _eager_tensors)(model, flow, batch)
    return SavedHalves(
        [*norms.attention, *adapters.attention, *products],
        [*norms.feed_forward, *adapters.feed_forward],
    )


def _adapter_halves(model: ModelSpec, block: BlockTerms, batch: BatchShape) -> SavedHalves:
    """Return the tensors that layers with trained terms save.

    They are the layer's input, for the gradient of A, and A's output (T r), for that of B. Layers
    with the same input share it. Frozen weights and frozen terms need no input.
    """
    trains_a, trains_b = block.trains_a, block.trains_b
    # Flash attention saves its output, which is also the input of the next layer.
    is_shared = model.attention == "sdpa" and gradient_flow(block).inputs[3]
    readers = [
        any(trains_a[:3]),
        trains_a[3] and not is_shared,
        any(trains_a[4:-1]),
        trains_a[-1],
    ]
    first = "x" if model.form != "llama" else "normed"
    inputs = [
        [SavedTensor(batch.tokens * model.linears[index].in_features, batch.bits, name=name)]
        * is_saved
        for index, name, is_saved in zip(
            (0, 3, 4, -1), (first, "attended", "middle", "last"), readers, strict=True
        )
    ]
    lows = [
        SavedTensor(batch.tokens * held * is_trained, batch.bits, name=f"low of {layer.name}")
        for layer, held, is_trained in zip(model.linears, block.held, trains_b, strict=True)
    ]
    return SavedHalves([*inputs[0], *lows[:3]], [*inputs[1], *inputs[2], *inputs[3], *lows[3:]])


def _eager_tensors(model: ModelSpec, flow: GradientFlow, batch: BatchShape) -> list[SavedTensor]:
    """Return the tensors that eager attention saves.

    A product saves each operand that the gradient of the other needs, and softmax its result. Keys
    and values are repeated for every query head. Llama's softmax is in fp32, and then cast.
    """
    query, key, value = flow.outputs[:3]
    scored = query or key
    queries = batch.tokens * model.linears[0].out_features
    num_scores = batch.tokens * batch.length * model.num_heads  # b n s^2
    named = (("query", key), ("key", query), ("value", scored))
    operands = [
        SavedTensor(queries, batch.bits, "attention", name) for name, is_saved in named if is_saved
    ]
    scores = SavedTensor(num_scores, batch.bits, name="scores")
    if model.form == "llama" and batch.bits < 32:
        softmax = SavedTensor(num_scores, 32, name="softmax")
        return operands + [softmax] * scored + [scores] * value
    return operands + [scores] * (scored or value)


def _flash_tensors(model: ModelSpec, flow: GradientFlow, batch: BatchShape) -> list[SavedTensor]:
    """Return the tensors that flash attention saves.

    They are its operands, its output and the log-sum-exp of each row of scores. A mask is expanded
    to (b, s, s), and repeats keys and values for every query head.
    """
    if not any(flow.outputs[:3]):
        return []
    queries = batch.tokens * model.linears[0].out_features
    keys = queries if batch.is_padded else batch.tokens * model.linears[1].out_features
    mask = [SavedTensor(batch.tokens * batch.length, batch.bits, "exact", "mask")]
    mask *= batch.is_padded
    return [
        SavedTensor(queries, batch.bits, "attention", "query"),
        SavedTensor(keys, batch.bits, "attention", "key"),
        SavedTensor(keys, batch.bits, "attention", "value"),
        SavedTensor(queries, batch.bits, name="attended"),
        SavedTensor(batch.tokens * model.num_heads, 32, "exact", "log-sum-exp"),
        *mask,
    ]


def _bert_halves(model: ModelSpec, flow: GradientFlow, batch: BatchShape) -> SavedHalves:
    """Return the tensors that a BERT block's norms and activation save.

    They are the input, mean and deviation of two layer norms, and the input of GELU.
    """
    statistic = SavedTensor(batch.tokens, batch.bits, name="statistics")
    first, second = (
        [SavedTensor(batch.tokens * model.hidden, batch.bits, name=name), statistic, statistic]
        for name in ("norm", "last norm")
    )
    after_attention, widened, narrowed = flow.inputs[4], flow.outputs[4], flow.outputs[5]
    gelu = [SavedTensor(batch.tokens * model.ffn, batch.bits, name="wide")] * widened
    return SavedHalves([], first * after_attention + gelu + second * (after_attention or narrowed))


def _llama_halves(model: ModelSpec, flow: GradientFlow, batch: BatchShape) -> SavedHalves:
    """Return the tensors that a Llama block's norms and activation save.

    There is an RMS norm before each half, and silu(gate) * up saves gate, silu(gate) and up.
    """
    gate, up = flow.outputs[4:6]
    named = (("gate", gate), ("up", gate), ("silu", up))
    product = [
        SavedTensor(batch.tokens * model.ffn, batch.bits, name=name)
        for name, is_saved in named
        if is_saved
    ]
    first, second = (_rms_norm_tensors(model, batch, name) for name in ("x", "residual"))
    heads = [] if model.family != "qwen3" else _head_norm_tensors(model, flow, batch)
    return SavedHalves(first * flow.inputs[0] + heads, second * flow.inputs[4] + product)


def _head_norm_tensors(
    model: ModelSpec, flow: GradientFlow, batch: BatchShape
) -> list[SavedTensor]:
    """Return what Qwen3's norms of each head's query and key save: input and deviation, in fp32."""
    heads = (model.num_heads, model.num_kv_heads)
    return [
        SavedTensor(batch.tokens * elements, 32, name=name)
        for layer, num_heads, is_saved in zip(model.linears, heads, flow.outputs[:2], strict=False)
        for elements, name in ((layer.out_features, layer.name), (num_heads, "statistics"))
        if is_saved
    ]


def _rms_norm_tensors(model: ModelSpec, batch: BatchShape, name: str) -> list[SavedTensor]:
    """Return what an RMS norm saves: input and deviation, in fp32 whatever the model's width.

    In 16 bits the input is a converted copy, beside that which the block's code keeps.
    """
    if batch.bits < 32:
        name = f"converted {name}"
    width = SavedTensor(batch.tokens * model.hidden, 32, name=name)
    return [width, SavedTensor(batch.tokens, 32, name="statistics")]


def rotary_tensors(
    model: ModelSpec, blocks: Sequence[BlockTerms], batch: BatchShape
) -> list[SavedTensor]:
    """Return the cosine and sine (s, h / n) that all blocks share.

    They are saved if any block rotates a query or key that needs a gradient.
    """
    rotates = any(
        any(gradient_flow(block).outputs[:2]) for block in blocks if block.position != "below"
    )
    return position_tensors(model, batch)[:2] if rotates else []


def position_tensors(model: ModelSpec, batch: BatchShape) -> list[SavedTensor]:
    """Return the cosine and sine (s, h / n) and their positions; only a Llama has them."""
    if model.form != "llama":
        return []
    head_size = model.linears[0].out_features // model.num_heads
    table = SavedTensor(batch.length * head_size, batch.bits, "exact")
    return [table, table, SavedTensor(batch.length, INDEX_BITS, "exact")]


def head_tensors(
    model: ModelSpec, blocks: Sequence[BlockTerms], batch: BatchShape
) -> list[SavedTensor]:
    """Return the tensors that the head and the loss save.

    Whatever the model computes in, the losses of tokens and of scores are computed in fp32, from
    logits that they convert: what is saved is the log-softmax of tokens, T V, or the error of each
    score.
    """
    crosses = any(block.position != "below" for block in blocks)
    norm = _rms_norm_tensors(model, batch, "final") * (crosses and model.form == "llama")
    if model.head.per == "token":
        return [
            *norm,
            SavedTensor(batch.tokens * model.head.num_outputs, 32),
            SavedTensor(batch.tokens, INDEX_BITS),  # targets
            SavedTensor(1, 32),  # the sum of their weights
            SavedTensor(1, INDEX_BITS),  # their number
        ]
    if model.head.loss == "squared_error":
        loss = [SavedTensor(batch.size * model.head.num_outputs, 32)]  # output less target
    else:
        loss = [
            SavedTensor(batch.size * model.head.num_outputs, batch.bits),  # log-softmax
            SavedTensor(batch.size, INDEX_BITS),  # labels
            SavedTensor(1, batch.bits),  # their number
        ]
    if model.form == "llama":
        scored = SavedTensor(batch.tokens * model.hidden, batch.bits)
        return [*norm, scored, *[SavedTensor(batch.size, INDEX_BITS)] * 2, *loss]
    pooled = [SavedTensor(batch.size * model.hidden, batch.bits)]
    if model.family != "bert":  # the saved view of the first token keeps all tokens in memory
        pooled.append(SavedTensor(batch.tokens * model.hidden, batch.bits))
    return [*pooled, *loss]
