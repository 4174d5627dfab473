"""Computes costs of blocks without closed forms from the trace of one block.

The costs of a plan follow from the records of ``devices/cost/block_trace.py`` as from closed forms,
for any ranks and formats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from devices.cost.block_trace import (
    BlockPattern,
    BlockTrace,
    FrameTrace,
    Keeping,
    LayerState,
    PassTrace,
    TracedTensor,
    Tracer,
)
from devices.cost.blocks import BatchShape, BlockTerms, block_terms
from devices.cost.closed_form import Demand
from devices.cost.memory import (
    FORMAT_BITS,
    BesideBlocks,
    BlockMemory,
    BlockWork,
    matrix_bytes,
    whole_memory,
)
from devices.cost.optimizers import ADAMW, OptimizerCost
from devices.cost.saved import SavedTensor
from devices.cost.traffic import Traffic, head_traffic, optimizer_bytes
from devices.cost.working import PACKED_AT_ONCE, PACKING_BYTES, UNPACKING_BYTES, Peaks
from devices.models.spec import ModelSpec
from devices.vocabulary.number_formats import SMALLEST_PACKED
from devices.vocabulary.plan import TrainingPlan
from devices.wire.wire import download_bytes, upload_bytes
from traces.arrays import IntArray


class _BlockDemand(NamedTuple):
    """A block demand is what one block of a plan asks of any device in one training step."""

    forward_flops: int
    backward_flops: int
    traffic: Traffic
    memory: BlockMemory


@dataclass(frozen=True)
class TracedDemand:
    """This function of a plan returns its demand, for a model whose blocks are traced."""

    tracer: Tracer
    _blocks: dict[tuple[BlockWork, BatchShape], _BlockDemand] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __call__(
        self,
        model: ModelSpec,
        plan: TrainingPlan,
        batch: BatchShape,
        optimizer: OptimizerCost = ADAMW,
    ) -> Demand:
        """Return the demand of a plan without absent blocks."""
        blocks = block_terms(model, plan.terms)
        works = [*map(BlockWork, blocks, plan.activation_bits, plan.weight_formats)]
        counted = [(self._block(model, w, batch), n) for w, n in Counter(works).items()]
        crosses = any(block.position != "below" for block in blocks)
        frame = self.tracer.frame(batch, crosses=crosses)
        head = head_traffic(model, batch, crosses=crosses)
        memory = {work: self._block(model, work, batch).memory for work in works}
        return Demand(
            forward_flops=frame.forward_flops + sum(n * b.forward_flops for b, n in counted),
            backward_flops=frame.backward_flops + sum(n * b.backward_flops for b, n in counted),
            traffic=Traffic(
                forward=head.forward + sum(n * b.traffic.forward for b, n in counted),
                backward=head.backward + sum(n * b.traffic.backward for b, n in counted),
                cast=sum(n * b.traffic.cast for b, n in counted),
                unpacked=sum(n * b.traffic.unpacked for b, n in counted),
                packed=sum(n * b.traffic.packed for b, n in counted),
                optimizer=optimizer_bytes(model, plan, optimizer),
            ),
            memory=whole_memory(
                model,
                plan,
                [memory[work] for work in works],
                self._beside(frame, works, batch),
                optimizer=optimizer,
            ),
            download_bytes=download_bytes(model, plan),
            upload_bytes=upload_bytes(model, plan.terms),
        )

    def _block(self, model: ModelSpec, work: BlockWork, batch: BatchShape) -> _BlockDemand:
        known = self._blocks.get((work, batch))
        if known is None:
            trace = self.tracer.block(_pattern_of(work), batch)
            known = self._blocks[work, batch] = _block_demand(model, trace, work, batch)
        return known

    def _beside(
        self, frame: FrameTrace, works: Sequence[BlockWork], batch: BatchShape
    ) -> BesideBlocks:
        kept = frozenset[int]().union(
            *(self.tracer.block(_pattern_of(work), batch).held_arguments for work in set(works))
        )
        shared = sum(frame.argument_bytes[index] for index in kept)
        return BesideBlocks(
            shared=shared,
            first=frame.first_bytes - shared,
            later=frame.later_bytes - shared,
            head=frame.head_bytes,
            head_peak=frame.head_peak_bytes,
        )


def _pattern_of(work: BlockWork) -> BlockPattern:
    """Return the pattern of a block, from whose trace its costs follow."""
    terms = work.terms
    keeping: Mapping[int, Keeping] = {32: "kept", 0: "recomputed"}
    return BlockPattern(
        layers=tuple(
            LayerState(held > 0, trained > 0)
            for held, trained in zip(terms.held, terms.trained, strict=True)
        ),
        trained_factors=terms.trained_factors,
        position=terms.position,
        keeping=keeping.get(work.activation_bits, "packed")
        if terms.position != "below"
        else "kept",
    )


def _block_demand(
    model: ModelSpec, trace: BlockTrace, work: BlockWork, batch: BatchShape
) -> _BlockDemand:
    """Return the demand of one block, at its ranks and formats, from its pattern's trace."""
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
    """Return the elements of a tensor at the number of terms that its layer holds."""
    return tensor.elements * (1 if tensor.layer is None else terms.held[tensor.layer])


def _size(tensor: TracedTensor, work: BlockWork, batch: BatchShape) -> int:
    """Return the bytes of one tensor under a plan."""
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


def _converted_bytes(
    model: ModelSpec, trace: BlockTrace, work: BlockWork, batch: BatchShape
) -> int:
    """Return the bytes of converting weights to operands, as often as the trace did."""
    if FORMAT_BITS[work.weight_format] == batch.bits:
        return 0
    times = (trace.forward.conversions + trace.backward.conversions).tolist()
    return sum(
        number * (matrix_bytes(layer, work.weight_format) + batch.num_bytes(layer.num_weights))
        for layer, number in zip(model.linears, times, strict=True)
    )


def _packed_bytes(trace: BlockTrace, work: BlockWork) -> int:
    """Return the bytes of packing saved tensors and of unpacking them again."""
    found = 0
    for index in trace.held:
        tensor = trace.tensors[index]
        if tensor.kind not in ("planned", "attention"):
            continue
        saved = SavedTensor(_terms(tensor, work.terms), tensor.bits, tensor.kind)
        held = saved.held_bytes(work.activation_bits)
        found += 2 * (saved.raw_bytes + held) * (held < saved.raw_bytes)
    return found
