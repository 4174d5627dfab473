"""Defines the trace of one block, and how a block is described to be traced.

``devices/tracing/block_tracer.py`` runs one block on fake tensors. It records which tensors live
when, and what each operator computes and moves, and separates sizes that grow with the terms held
in a layer from those that do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from devices.cost.blocks import BatchShape
from devices.vocabulary.plan import FactorName
from traces.arrays import BoolArray, IntArray

Keeping = Literal["kept", "packed", "recomputed"]
"""How a block keeps the tensors that it saves."""
TensorKind = Literal[
    "plain",  # as computed, not saved
    "planned",  # saved at the bits of the plan
    "attention",  # saved at the bits of the plan, but at least 8
    "packing",  # scratch memory while a saved tensor is packed
    "unpacking",  # scratch memory while a saved tensor is unpacked
    "weight",  # a frozen weight converted to the operand width
    "unpacking weight",  # scratch memory while a frozen weight is unpacked
]


class LayerState(NamedTuple):
    """A layer state says what a trace depends on of a layer's terms, but not their number."""

    holds: bool
    trains: bool


class BlockPattern(NamedTuple):
    """A block pattern is a kind of block: blocks of one pattern have the same trace."""

    layers: tuple[LayerState, ...]  # in the order of ModelSpec.linears
    trained_factors: tuple[FactorName, ...]
    position: Literal["below", "bottom", "above"]
    keeping: Keeping


class TracedTensor(NamedTuple):
    """A traced tensor is one storage that lived while the block ran."""

    elements: int  # number in total, or for each term of ``layer``
    bits: int  # bits of an element as computed
    layer: int | None  # the layer with whose held terms the size grows; None for a fixed size
    kind: TensorKind = "plain"


@dataclass(frozen=True, eq=False)
class PassTrace:
    """A pass trace records one pass through a block, forward or backward.

    Amounts are (1 + layers,): a fixed amount, then the amount for each held term of each layer.
    """

    flops: IntArray
    moved_bytes: IntArray  # bytes that operators read and write
    conversions: IntArray  # (layers,): how often each layer's weight is converted
    live: BoolArray  # (instants, tensors): which tensors live at the instants that may be a peak


@dataclass(frozen=True, eq=False)
class BlockTrace:
    """A block trace records one block of a pattern, run forward and backward."""

    tensors: tuple[TracedTensor, ...]
    forward: PassTrace
    backward: PassTrace
    held: tuple[int, ...]  # the tensors that live between the passes
    held_arguments: frozenset[int]  # arguments common to all blocks that this block keeps


class FrameTrace(NamedTuple):
    """A frame trace records the run of a model without its blocks."""

    forward_flops: int
    backward_flops: int
    argument_bytes: tuple[int, ...]  # size of each argument of a block besides the hidden states
    first_bytes: int  # held while the first block runs, without its input
    later_bytes: int  # held while any other block runs, without its input
    head_bytes: int  # held after the forward pass
    head_peak_bytes: int  # the most held from the last block's output to its gradient


class Tracer(Protocol):
    """A tracer runs a block, and a model without its blocks, on padded batches."""

    def block(self, pattern: BlockPattern, batch: BatchShape) -> BlockTrace:
        """Return the trace of a block of this pattern."""
        ...

    def frame(self, batch: BatchShape, *, crosses: bool) -> FrameTrace:
        """Return the trace of a model without its blocks.

        ``crosses`` says whether a gradient goes into the topmost block.
        """
        ...
