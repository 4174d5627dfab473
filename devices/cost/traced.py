"""Costs of blocks without closed forms: from one block that was run once, without its numbers.

``devices/tracing/block_tracer.py`` runs it and writes down which tensors live when and what each
operator computes and moves, with sizes that grow with the terms held in a layer told apart. What a
plan costs follows from these records as from closed forms, for any ranks and formats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np

from devices.cost.blocks import Batch, BlockTerms, block_terms
from devices.cost.closed_form import Demand
from devices.cost.memory import (
    FORMAT_BITS,
    BlockMemory,
    BlockWork,
    Surroundings,
    matrix_bytes,
    whole_memory,
)
from devices.cost.saved import SavedTensor
from devices.cost.traffic import Traffic, optimizer_bytes
from devices.cost.working import PACKED_AT_ONCE, PACKING_BYTES, UNPACKING_BYTES, Peaks
from devices.models.spec import ModelSpec
from devices.vocabulary.number_formats import SMALLEST_PACKED
from devices.vocabulary.plan import TrainingPlan
from devices.wire.wire import download_bytes, upload_bytes
from traces.arrays import BoolArray, IntArray

Keeping = Literal["kept", "packed", "recomputed"]
"""What becomes of the tensors that a block saves."""
TensorKind = Literal[
    "plain",  # at the width of the products
    "planned",  # saved, at the bits of the plan
    "attention",  # saved, never below 8 bits
    "packing",  # beside a tensor that is being packed
    "unpacking",
    "weight",  # converted for a product
    "unpacking weight",
]


class LayerState(NamedTuple):
    """What a trace depends on of one layer's terms; their number it does not."""

    holds: bool
    trains: bool


class Pattern(NamedTuple):
    """One kind of block, by what autograd makes of it."""

    layers: tuple[LayerState, ...]  # in the order of ModelSpec.linears
    trains_a: bool
    position: Literal["below", "bottom", "above"]
    keeping: Keeping


class TracedTensor(NamedTuple):
    """One storage that lived while the block ran."""

    elements: int  # of one term where ``layer`` names one
    bits: int  # of an element as computed
    layer: int | None  # its size is that of one term, times the terms that this layer holds
    kind: TensorKind = "plain"


@dataclass(frozen=True, eq=False)
class PassTrace:
    """One pass through a block. Amounts are (1 + layers,): fixed, and for each term of a layer."""

    flops: IntArray
    moved_bytes: IntArray  # read and written by operators
    conversions: IntArray  # (layers,): times that each layer's weights are converted
    live: BoolArray  # (instants, tensors), without instants at which less lives than at others


@dataclass(frozen=True, eq=False)
class BlockTrace:
    """One block of one pattern, run forward and backward."""

    tensors: tuple[TracedTensor, ...]
    forward: PassTrace
    backward: PassTrace
    held: tuple[int, ...]  # tensors that live between the passes
    held_arguments: frozenset[int]  # that all blocks are called with, and that this one keeps


class FrameTrace(NamedTuple):
    """Everything but the blocks."""

    forward_flops: int
    backward_flops: int
    argument_bytes: tuple[int, ...]  # of what all blocks are called with, besides hidden states
    first_bytes: int  # while the first block runs: all that lives but its input
    later_bytes: int  # while any other runs
    head_bytes: int  # after the forward pass


class Tracer(Protocol):
    """Runs a block and what is around it. Batches are padded."""

    def block(self, pattern: Pattern, batch: Batch) -> BlockTrace: ...
    def frame(self, batch: Batch, *, crosses: bool) -> FrameTrace:
        """``crosses``: a gradient goes into the topmost block."""
        ...


class _BlockDemand(NamedTuple):
    """What one block asks of any device."""

    forward_flops: int
    backward_flops: int
    traffic: Traffic
    memory: BlockMemory


@dataclass(frozen=True)
class TracedDemand:
    """What plans ask of any device, for a model whose blocks were traced."""

    tracer: Tracer
    _blocks: dict[tuple[BlockWork, Batch], _BlockDemand] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __call__(self, model: ModelSpec, plan: TrainingPlan, batch: Batch) -> Demand:
        """Of a plan that leaves no block out."""
        blocks = block_terms(model, plan.terms)
        works = [*map(BlockWork, blocks, plan.activation_bits, plan.weight_formats)]
        counted = [(self._block(model, w, batch), n) for w, n in Counter(works).items()]
        frame = self.tracer.frame(batch, crosses=any(b.position != "below" for b in blocks))
        memory = {work: self._block(model, work, batch).memory for work in works}
        return Demand(
            forward_flops=frame.forward_flops + sum(n * b.forward_flops for b, n in counted),
            backward_flops=frame.backward_flops + sum(n * b.backward_flops for b, n in counted),
            traffic=Traffic(
                forward=sum(n * b.traffic.forward for b, n in counted),
                backward=sum(n * b.traffic.backward for b, n in counted),
                cast=sum(n * b.traffic.cast for b, n in counted),
                unpacked=sum(n * b.traffic.unpacked for b, n in counted),
                packed=sum(n * b.traffic.packed for b, n in counted),
                optimizer=optimizer_bytes(model, plan),
            ),
            memory=whole_memory(
                model, plan, [memory[work] for work in works], self._around(frame, works, batch)
            ),
            download_bytes=download_bytes(model, plan),
            upload_bytes=upload_bytes(model, plan.terms),
        )

    def _block(self, model: ModelSpec, work: BlockWork, batch: Batch) -> _BlockDemand:
        known = self._blocks.get((work, batch))
        if known is None:
            trace = self.tracer.block(pattern_of(work), batch)
            known = self._blocks[work, batch] = block_demand(model, trace, work, batch)
        return known

    def _around(self, frame: FrameTrace, works: Sequence[BlockWork], batch: Batch) -> Surroundings:
        kept = frozenset[int]().union(
            *(self.tracer.block(pattern_of(work), batch).held_arguments for work in set(works))
        )
        shared = sum(frame.argument_bytes[index] for index in kept)
        return Surroundings(
            shared=shared,
            first=frame.first_bytes - shared,
            later=frame.later_bytes - shared,
            head=frame.head_bytes,
        )


def pattern_of(work: BlockWork) -> Pattern:
    """The kind of trace that a block's costs follow from."""
    terms = work.terms
    keeping: Mapping[int, Keeping] = {32: "kept", 0: "recomputed"}
    return Pattern(
        layers=tuple(
            LayerState(held > 0, trained > 0)
            for held, trained in zip(terms.held, terms.trained, strict=True)
        ),
        trains_a="a" in terms.trained_factors,
        position=terms.position,
        keeping=keeping.get(work.activation_bits, "packed")
        if terms.position != "below"
        else "kept",
    )


def block_demand(
    model: ModelSpec, trace: BlockTrace, work: BlockWork, batch: Batch
) -> _BlockDemand:
    """Of one block, at its own ranks and formats."""
    counts = np.array([1, *work.terms.held], dtype=np.int64)
    sizes = np.array([_size(tensor, work, batch) for tensor in trace.tensors], dtype=np.int64)
    converted = _converted_bytes(model, trace, work, batch)
    is_small = FORMAT_BITS[work.weight_format] < 8
    forward, backward = trace.forward, trace.backward
    return _BlockDemand(
        forward_flops=int(forward.flops @ counts),
        backward_flops=int(backward.flops @ counts),
        traffic=Traffic(
            forward=int(forward.moved_bytes @ counts),
            backward=int(backward.moved_bytes @ counts),
            cast=0 if is_small else converted,
            unpacked=converted if is_small else 0,
            packed=_packed_bytes(trace, work),
            optimizer=0,
        ),
        memory=BlockMemory(
            held=int(sizes[list(trace.held)].sum()),
            peaks=Peaks(_peak(forward, sizes), _peak(backward, sizes)),
        ),
    )


def _peak(trace: PassTrace, sizes: IntArray) -> int:
    return int((trace.live @ sizes).max(initial=0))


def _terms(tensor: TracedTensor, terms: BlockTerms) -> int:
    """Elements, at the number of terms that the layer really holds."""
    return tensor.elements * (1 if tensor.layer is None else terms.held[tensor.layer])


def _size(tensor: TracedTensor, work: BlockWork, batch: Batch) -> int:
    """Bytes of one tensor under this plan."""
    elements, bits = _terms(tensor, work.terms), FORMAT_BITS[work.weight_format]
    at_once = min(elements, PACKED_AT_ONCE)
    match tensor.kind:
        case "planned" | "attention" as precision:
            return SavedTensor(elements, tensor.bits, precision).held_bytes(work.activation_bits)
        case "packing":
            return at_once * PACKING_BYTES * (elements >= SMALLEST_PACKED)
        case "unpacking":
            return at_once * UNPACKING_BYTES[work.activation_bits] * (elements >= SMALLEST_PACKED)
        case "weight":
            return batch.num_bytes(elements) * (bits != batch.bits)
        case "unpacking weight":
            return at_once * UNPACKING_BYTES.get(bits, 0)
    return elements * tensor.bits // 8


def _converted_bytes(model: ModelSpec, trace: BlockTrace, work: BlockWork, batch: Batch) -> int:
    """Read as they lie and written as operands, as often as they were."""
    if FORMAT_BITS[work.weight_format] == batch.bits:
        return 0
    times = (trace.forward.conversions + trace.backward.conversions).tolist()
    return sum(
        number * (matrix_bytes(layer, work.weight_format) + batch.num_bytes(layer.num_weights))
        for layer, number in zip(model.linears, times, strict=True)
    )


def _packed_bytes(trace: BlockTrace, work: BlockWork) -> int:
    """Read as computed and written packed; then read packed and written as computed."""
    found = 0
    for index in trace.held:
        tensor = trace.tensors[index]
        if tensor.kind not in ("planned", "attention"):
            continue
        saved = SavedTensor(_terms(tensor, work.terms), tensor.bits, tensor.kind)
        held = saved.held_bytes(work.activation_bits)
        found += 2 * (saved.raw_bytes + held) * (held < saved.raw_bytes)
    return found
