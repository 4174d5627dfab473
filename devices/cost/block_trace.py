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
    "packing",  # needed while a saved tensor is packed
    "unpacking",  # needed while one is unpacked
    "weight",  # a frozen weight converted to the operand width
    "unpacking weight",  # needed while a frozen weight is unpacked
]


class LayerState(NamedTuple):
    """The state of one layer's terms that a trace depends on; their number is not part of it."""

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

    elements: int  # in total, or for each term of ``layer``
    bits: int  # of an element as computed
    layer: int | None  # the layer with whose held terms the size grows; None for a fixed size
    kind: TensorKind = "plain"


@dataclass(frozen=True, eq=False)
class PassTrace:
    """The trace of one pass through a block.

    Amounts are (1 + layers,): a fixed amount, and that for each held term of each layer.
    """

    flops: IntArray
    moved_bytes: IntArray  # read and written by operators
    conversions: IntArray  # (layers,): how often each layer's weight is converted
    live: BoolArray  # (instants, tensors): which tensors live at the instants that may be a peak


@dataclass(frozen=True, eq=False)
class BlockTrace:
    """The trace of one block of a pattern, run forward and backward."""

    tensors: tuple[TracedTensor, ...]
    forward: PassTrace
    backward: PassTrace
    held: tuple[int, ...]  # the tensors that live between the passes
    held_arguments: frozenset[int]  # arguments common to all blocks that this block keeps


class FrameTrace(NamedTuple):
    """The trace of a model without its blocks."""

    forward_flops: int
    backward_flops: int
    argument_bytes: tuple[int, ...]  # of each argument of a block besides the hidden states
    first_bytes: int  # what lives while the first block runs, without its input
    later_bytes: int  # what lives while any other block runs, without its input
    head_bytes: int  # what lives after the forward pass
    head_peak_bytes: int  # at the most from the last block's output to the gradient of it


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
