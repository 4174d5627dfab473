"""Lists the tensors that live in one block at the instants that may be its peak of memory.

Operators run forward one by one, and backward in reverse. A tensor lives until the last operator,
variable of the code or saved reference that needs it. An instant lists the tensors that operators
then compute with, and the saved tensors that do not live: not yet made, or released. A saved tensor
that an operator computes with lives once if it is kept as computed, else beside its packed form.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from devices.cost.blocks import BatchShape, BlockTerms, gradient_flow
from devices.cost.saved import SavedTensor, block_tensors
from devices.models.spec import ModelSpec
from devices.vocabulary.number_formats import FP32_BYTES, GROUP, GROUPS_AT_ONCE

PACKED_AT_ONCE = GROUPS_AT_ONCE * GROUP
"""Elements that are packed or unpacked together, in fp32 beside all other tensors."""
PACKING_BYTES = 9
"""Bytes of an element while it is packed: its distance from zero, and its code in 32 and 8 bits.

An element of 16 bits is converted to fp32 besides.
"""
UNPACKING_BYTES = {8: 4, 4: 6}
"""Bytes of an element while it is unpacked, by the bits of its code.

They are its value, and where two codes share a byte also their index into a table.
"""
AFTER_ATTENTION = ("attended", "norm", "residual", "converted residual", "middle")
"""Names of the tensors that a block saves between its attention's output and its feed-forward."""
WIDE = ("wide", "gate", "silu", "up", "last", "last norm")
"""Names of the tensors that a block saves in and after its feed-forward."""


class Instant(NamedTuple):
    """An instant lists the tensors of a block that live at one time besides the saved ones."""

    computed: dict[str, int]  # bytes by name; a tensor that is saved too has the saved one's name
    absent: frozenset[str] = frozenset()  # saved tensors that are not yet made or already freed


class Peaks(NamedTuple):
    """Peaks are the most bytes of one block in each pass, with the tensors that it saves."""

    forward: int
    backward: int  # 0 if no backward pass reaches the block


class _Sizes(NamedTuple):
    """Sizes holds the bytes of each kind of tensor that a block computes with."""

    narrow: int  # a tensor of T h elements
    queries: int  # T n times the width of a head
    keys: int  # T n_kv times the width of a head
    wide: int  # a tensor of T f elements
    scores: int  # b n s^2 elements; 0 with flash attention
    softmax: int  # the fp32 copy of the scores in a Llama's softmax; 0 if they are fp32 already
    weight: int  # the largest matrix, converted for a product; 0 if it needs no conversion
    unpacking_weight: int
    packing: int  # scratch memory while a wide tensor is packed
    packing_narrow: int
    packing_scores: int
    packing_softmax: int
    unpacking: int


@lru_cache(maxsize=4096)
def block_peaks(
    model: ModelSpec, block: BlockTerms, batch: BatchShape, *, bits: int, weight_bits: int
) -> Peaks:
    """Return the peaks of a block with activations and weights of these bits."""
    size = _sizes(model, batch, bits, weight_bits)
    is_llama = model.form == "llama"
    forward = list((_llama_forward if is_llama else _bert_forward)(model, block, size))
    if block.position == "below":
        return Peaks(_peak([], forward, 32), 0)
    backward = [
        *(_llama_backward if is_llama else _bert_backward)(block, size),
        *_attention_backward(model, block, size),
    ]
    halves = block_tensors(model, block, batch)
    saved = [*halves.attention, *halves.feed_forward]
    if bits:
        return Peaks(_peak(saved, forward, bits), _peak(saved, backward, bits))
    # The first forward pass saves the block's input only. The second one runs while the gradient of
    # the block's output is in memory.
    saved = _with_input(saved, size)
    # The second pass stops after the last tensor that is saved. If B of a Llama's last layer is
    # trained, that tensor is A x. Otherwise it is the layer's converted weight, while the input of
    # the layer is still in memory.
    is_passed = is_llama and size.weight > 0 and not block.trains_b[-1]
    # By then the gradient has been multiplied by the scale of the last layer's terms. The original
    # is kept too, if the gradient goes on below that layer.
    is_scaled = is_llama and block.held[-1] > 0 and gradient_flow(block).inputs[-1]
    again = _peak(saved, forward, 32) + size.narrow * (1 + is_scaled) + size.wide * is_passed
    return Peaks(_peak([], forward, 32), max(again, _peak(saved, backward, 32)))


def _with_input(saved: list[SavedTensor], size: _Sizes) -> list[SavedTensor]:
    has_input = any(tensor.name == "x" for tensor in saved)
    return saved if has_input else [*saved, SavedTensor(size.narrow, 8, "exact", "x")]


def _peak(saved: Iterable[SavedTensor], instants: Iterable[Instant], bits: int) -> int:
    kept: dict[str, int] = {}
    for tensor in saved:
        kept[tensor.name] = kept.get(tensor.name, 0) + tensor.held_bytes(bits)
    raw = {tensor.name for tensor in saved if tensor.held_bytes(bits) == tensor.raw_bytes}
    return max(
        sum(size for name, size in kept.items() if name not in instant.absent)
        + sum(
            size
            for name, size in instant.computed.items()
            if not (name in raw and name not in instant.absent)
        )
        for instant in instants
    )


def _sizes(model: ModelSpec, batch: BatchShape, bits: int, weight_bits: int) -> _Sizes:
    narrow, wide = (batch.tokens * width for width in (model.hidden, model.ffn))
    scores = batch.tokens * batch.length * model.num_heads * (model.attention == "eager")
    largest = max(layer.num_weights for layer in model.linears)
    packing = (PACKING_BYTES + FP32_BYTES * (batch.bits < 32)) * (0 < bits < 32)
    return _Sizes(
        narrow=batch.num_bytes(narrow),
        queries=batch.num_bytes(batch.tokens * model.linears[0].out_features),
        keys=batch.num_bytes(batch.tokens * model.linears[1].out_features),
        wide=batch.num_bytes(wide),
        scores=batch.num_bytes(scores),
        softmax=FP32_BYTES * scores * (model.form == "llama" and batch.bits < 32),
        weight=batch.num_bytes(largest) * (weight_bits != batch.bits),
        unpacking_weight=min(largest, PACKED_AT_ONCE) * UNPACKING_BYTES.get(weight_bits, 0),
        packing=min(wide, PACKED_AT_ONCE) * packing,
        packing_narrow=min(narrow, PACKED_AT_ONCE) * packing,
        packing_scores=min(scores, PACKED_AT_ONCE) * packing,
        packing_softmax=min(scores, PACKED_AT_ONCE) * PACKING_BYTES * (0 < bits < 32),
        unpacking=min(wide, PACKED_AT_ONCE) * UNPACKING_BYTES.get(bits, 0),
    )


def _adapted(held: int, out: int) -> dict[str, int]:
    """Return the output of a layer and, if it has terms, B's output and its scaled copy."""
    return {"output": out, **({"of B": out, "scaled": out} if held else {})}


def _converted(size: _Sizes, out: int) -> dict[str, int]:
    """Return a converted matrix and what lives beside it, while it is unpacked or multiplied."""
    if not size.weight:
        return {"output": out}
    return {"weight": size.weight, "output": max(out, size.unpacking_weight)}


def _bert_forward(model: ModelSpec, block: BlockTerms, size: _Sizes) -> Iterator[Instant]:
    """Yield the instants of a BERT block's forward pass.

    The scores live to the end of the block, whose code keeps what attention returns. In MPNet they
    live twice, to the end of attention with its output layer.
    """
    projected = {"q": size.narrow, "k": size.narrow, "v": size.narrow}
    later = frozenset((*AFTER_ATTENTION, *WIDE, "value"))
    yield from _scores_forward(block, size, {"x": size.narrow, **projected}, later)
    is_mpnet = model.family == "mpnet"
    kept_scores = size.scores * (not is_mpnet)
    if is_mpnet:
        output = {"attended": size.narrow, **_adapted(block.held[3], size.narrow)}
        both = {"masked": size.scores, "scores": size.scores}
        yield Instant({"x": size.narrow, **projected, **both, **output}, later - {"attended"})
    here = {"x": size.narrow, "middle": size.narrow, "scores": kept_scores}
    up = _adapted(block.held[4], size.wide)
    yield Instant({**here, **up}, frozenset(WIDE))
    yield Instant({**here, **_converted(size, size.wide)}, frozenset(WIDE))
    not_yet = frozenset(("last", "last norm"))
    yield Instant({**here, "wide": size.wide, "last": size.wide}, not_yet)
    if gradient_flow(block).outputs[4]:
        yield Instant({**here, "wide": size.wide, "scratch": size.packing}, not_yet)
    down = {**here, "last": size.wide, **_adapted(block.held[5], size.narrow)}
    yield Instant(down, frozenset(("last norm",)))
    yield Instant({**here, "last": size.wide, **_converted(size, size.narrow)}, not_yet)
    if block.trains_a[5]:
        beside = {"output": size.narrow, "scratch": size.packing}
        yield Instant({**here, "last": size.wide, **beside}, frozenset(("last norm",)))
    # DistilBERT's code frees the wide tensor here.
    summed = {"last": size.wide * (model.family != "distilbert"), "output": size.narrow}
    beside = {"last norm": size.narrow, "normed": max(size.narrow, size.packing_narrow)}
    yield Instant({**here, **summed, **beside})


def _scores_forward(
    block: BlockTerms, size: _Sizes, before: dict[str, int], later: frozenset[str]
) -> Iterator[Instant]:
    """Yield the instants of masked scores, and of their softmax, which is then packed.

    A softmax in fp32 takes a converted copy of 16-bit scores, and its result is converted back.
    """
    both = {**before, "masked": size.scores, "scores": size.scores}
    if size.softmax:
        working = {"masked": size.scores, "converted": size.softmax, "softmax": size.softmax}
        yield Instant({**before, **working}, later | {"softmax", "scores"})
        if any(gradient_flow(block).outputs[:3]):
            scratch = {"scratch": size.packing_softmax}
            yield Instant({**before, **working, **scratch}, later | {"scores"})
        both = {**before, "scores": size.scores}
    else:
        yield Instant(both, later | {"softmax"})
    if any(gradient_flow(block).outputs[:3]):
        yield Instant({**both, "scratch": size.packing_scores}, later)


def _bert_backward(block: BlockTerms, size: _Sizes) -> Iterator[Instant]:
    flow = gradient_flow(block)
    done = frozenset(("last", "last norm"))
    here = {"gradient": size.narrow, "of layer": size.narrow}
    yield Instant(here)
    if flow.inputs[5]:
        here = {"gradient": size.narrow}
        yield Instant({**here, **_adapted(block.held[5], size.wide)}, done)
        through_a = size.wide * (block.held[5] > 0)
        yield Instant({**here, "of A": through_a, **_converted(size, size.wide)}, done)
        working = {**here, "in": size.wide, "wide": size.wide}
        yield Instant({**working, "out": size.wide}, done)
        yield Instant({**working, "scratch": size.unpacking}, done)


def _llama_forward(model: ModelSpec, block: BlockTerms, size: _Sizes) -> Iterator[Instant]:
    """Yield the instants of a Llama block's forward pass.

    They are like a BERT block's, but the code also keeps the input of the block and of each half.
    """
    projected = {"q": size.queries, "k": size.keys, "v": size.keys}
    repeated = {"key": size.queries, "value": size.queries} if size.scores else {}
    later = frozenset((*AFTER_ATTENTION, *WIDE))
    before = {"x": size.narrow, "normed": size.narrow}
    yield from _scores_forward(block, size, {**before, **projected, **repeated}, later)
    here = {"x": size.narrow, "residual": size.narrow, "middle": size.narrow}
    here["scores"] = size.scores
    yield Instant({**here, **_adapted(block.held[4], size.wide)}, frozenset(WIDE))
    not_yet = frozenset(("up", "silu", "last"))
    up = _adapted(block.held[5], size.wide)
    yield Instant({**here, "silu": size.wide, **up}, not_yet)
    yield Instant({**here, "silu": size.wide, **_converted(size, size.wide)}, not_yet)
    both = {**here, "silu": size.wide, "up": size.wide}
    yield Instant({**both, "last": size.wide}, frozenset(("last",)))
    if any(gradient_flow(block).outputs[4:6]):
        yield Instant({**both, "scratch": size.packing}, frozenset(("last",)))
    down = {**here, "last": size.wide, **_adapted(block.held[6], size.narrow)}
    yield Instant(down)
    yield Instant({**here, "last": size.wide, **_converted(size, size.narrow)})
    if block.trains_a[6]:
        beside = {"output": size.narrow, "scratch": size.packing}
        yield Instant({**here, "last": size.wide, **beside})


def _llama_backward(block: BlockTerms, size: _Sizes) -> Iterator[Instant]:
    flow = gradient_flow(block)
    here = {"gradient": size.narrow}
    yield Instant({**here, "of layer": size.narrow})
    if not flow.inputs[6]:
        return
    done = frozenset(("last",))
    yield Instant({**here, **_adapted(block.held[6], size.wide)}, done)
    through_a = size.wide * (block.held[6] > 0)
    yield Instant({**here, "of A": through_a, **_converted(size, size.wide)}, done)
    gate, up = flow.outputs[4:6]
    unpacked = {"up": size.wide * gate, "silu": size.wide * up}
    working = {**here, "in": size.wide, **unpacked}
    yield Instant({**working, "out": size.wide * (gate + up)}, done)
    yield Instant({**working, "scratch": size.unpacking}, done)
    of_both = {"of gate": size.wide * gate, "of up": size.wide * up}
    if flow.inputs[4]:
        yield Instant(
            {**here, **of_both, **_converted(size, size.narrow)}, done | {"up", "silu", "gate"}
        )


def _attention_backward(model: ModelSpec, block: BlockTerms, size: _Sizes) -> Iterator[Instant]:
    """Yield the instants of attention's backward pass: the softmax, or all of flash attention."""
    query, key, value = gradient_flow(block).outputs[:3]
    if not (query or key or value):
        return
    done = frozenset((*AFTER_ATTENTION, *WIDE))
    here = {"gradient": size.narrow * (block.position == "above"), "of v": size.queries * value}
    if model.attention == "eager":
        if size.softmax:
            computed = dict.fromkeys(("softmax", "in", "out"), size.softmax)
            yield Instant({**here, **computed}, done | {"value", "scores"})
            return
        scores = {"scores": size.scores, "in": size.scores, "out": size.scores}
        yield Instant({**here, **scores}, done | {"value"})
        return
    operands = dict.fromkeys(("query", "key", "value", "attended", "in"), size.queries)
    found = {"of q": size.queries, "of k": size.queries}
    yield Instant({**here, **operands, **found}, done - {"attended"})
