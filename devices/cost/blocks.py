"""Describes the blocks of one training step: their LoRA terms and where gradients flow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from devices.fleet.profile import ComputeBits
from devices.models.spec import ModelSpec
from devices.vocabulary.plan import FactorName, TermGrid
from traces.arrays import BoolArray

Position = Literal["below", "bottom", "above"]
"""The position of a block relative to the lowest block with a trained term.

No backward pass reaches a block below. The one at the bottom is crossed, but its input needs no
gradient.
"""


class BatchShape(NamedTuple):
    """A batch shape describes one batch as a simulated device computes it."""

    size: int  # b
    length: int  # s, tokens of each sequence after padding
    is_padded: bool  # at least one sequence is shorter than s
    bits: ComputeBits  # width of the operands of matrix products

    @property
    def tokens(self) -> int:
        """Return T = b s, the tokens of the batch with padding."""
        return self.size * self.length

    def num_bytes(self, elements: int) -> int:
        """Return the bytes of so many operands."""
        return elements * self.bits // 8


class BlockTerms(NamedTuple):
    """Block terms count one block's LoRA terms by layer, in the order of ``ModelSpec.linears``."""

    held: tuple[int, ...]
    trained: tuple[int, ...]
    position: Position
    trained_factors: tuple[FactorName, ...] = ("a", "b")

    @property
    def trains_a(self) -> tuple[bool, ...]:
        """Return which layers have a trained A, whose gradient needs their input."""
        return tuple(count > 0 and "a" in self.trained_factors for count in self.trained)

    @property
    def trains_b(self) -> tuple[bool, ...]:
        """Return which layers have a trained B, whose gradient needs A x."""
        return tuple(count > 0 and "b" in self.trained_factors for count in self.trained)


class GradientFlow(NamedTuple):
    """A gradient flow says which inputs and outputs of each linear layer need a gradient."""

    inputs: tuple[bool, ...]
    outputs: tuple[bool, ...]


def block_terms(model: ModelSpec, terms: TermGrid) -> tuple[BlockTerms, ...]:
    """Return the terms of each of the L blocks, from the embedding up."""
    column = {layer.name: index for index, layer in enumerate(model.targets)}
    columns = [column.get(layer.name) for layer in model.linears]
    held, trained = _counts(terms.held, columns), _counts(terms.trained, columns)
    touched = [block for block, counts in enumerate(trained) if any(counts)]
    lowest = touched[0] if touched else model.num_blocks
    return tuple(
        BlockTerms(held[block], trained[block], _position(block, lowest), terms.trained_factors)
        for block in range(model.num_blocks)
    )


def _counts(grid: BoolArray, columns: Sequence[int | None]) -> list[tuple[int, ...]]:
    """Return the terms by block and linear layer; a layer without a column has no LoRA."""
    rows = list(map(tuple, grid.sum(axis=2).tolist()))
    counts = {  # many rows are equal, so each distinct one is counted once
        row: tuple([0 if column is None else row[column] for column in columns])
        for row in set(rows)
    }
    return [counts[row] for row in rows]


def _position(block: int, lowest: int) -> Position:
    if block < lowest:
        return "below"
    return "bottom" if block == lowest else "above"


@lru_cache(maxsize=1024)
def gradient_flow(block: BlockTerms) -> GradientFlow:
    """Return which tensors of a block need a gradient.

    The need is propagated forward through attention, feed-forward and residuals. The layers are
    query, key, value, attention output, one or two into the feed-forward, and one out of it.
    """
    hidden = block.position == "above"
    trains = [count > 0 for count in block.trained]
    qkv = [hidden or trained for trained in trains[:3]]
    attended = any(qkv)
    middle = hidden or attended or trains[3]
    widened = [middle or trained for trained in trains[4:-1]]
    narrowed = any(widened)
    return GradientFlow(
        inputs=(hidden, hidden, hidden, attended, *[middle] * len(widened), narrowed),
        outputs=(*qkv, attended or trains[3], *widened, narrowed or trains[-1]),
    )
