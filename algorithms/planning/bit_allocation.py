"""Allocates scarce bits: in memory to salient blocks, on the wire to important terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from devices.cost.memory import FORMAT_BITS, GROUP_BYTES
from devices.vocabulary.number_formats import GROUP
from devices.vocabulary.plan import WeightFormat
from devices.wire.messages import SCALE_BYTES
from traces.arrays import BitsArray, BoolArray, FloatArray, IntArray

FourBit = Literal["int4", "nf4"]
Formats = tuple[WeightFormat, ...]

SCALE_BITS = 2 * 8 * SCALE_BYTES
"""What a quantized term carries besides its parameters: one scale for each of its factors."""

_ERROR = {"fp16": 2.0**-32, "int8": 2.0**-16, "int4": 2.0**-8, "nf4": 2.0**-8}
"""Relative error of a weight in this format, 2^(-2 bits): our reconstruction."""


def greedy_formats(salience: FloatArray, four_bit: FourBit) -> list[Formats]:
    """Return formats of all blocks from fp16 to 4 bits, one block a step lower each time.

    The next to lose bits is the one with the least salience-weighted error per byte saved. Blocks
    are equally large, so the sequence is the same for every budget: a budget picks where to stop.
    ``salience`` is (L,); a negative one counts as 0.
    """
    ladder: tuple[WeightFormat, ...] = ("fp16", "int8", four_bit)
    steps = []
    for level, (high, low) in enumerate(pairwise(ladder)):
        loss = (_ERROR[low] - _ERROR[high]) / (_stored_bits(high) - _stored_bits(low))
        steps += [(max(s, 0.0) * loss, level, block) for block, s in enumerate(salience.tolist())]
    formats = [ladder[0]] * len(salience)
    sequence = [tuple(formats)]
    for _, level, block in sorted(steps):
        formats[block] = ladder[level + 1]
        sequence.append(tuple(formats))
    return sequence


def threshold_formats(salience: FloatArray, share: float, *, four_bit: FourBit) -> Formats:
    """Return 4 bits for the least salient ``share`` of the blocks, and int8 for the rest."""
    num_low = int(np.floor(share * len(salience) + 0.5))
    low = set(np.argsort(salience, kind="stable")[:num_low].tolist())
    return tuple(four_bit if block in low else "int8" for block in range(len(salience)))


@dataclass(frozen=True, eq=False)
class UploadSteps:
    """These are all steps up in precision of all terms, the most worth per bit first."""

    term: IntArray  # (S,): flat index of the term
    bits: IntArray  # (S,): bits per parameter after the step
    cost_bits: IntArray  # (S,): bits on the wire that the step adds
    shape: tuple[int, ...]  # of the grid of terms

    @classmethod
    def by_worth(
        cls,
        score: FloatArray,
        num_parameters: IntArray,
        *,
        levels: Sequence[int],
        scale_bits: int = SCALE_BITS,
    ) -> UploadSteps:
        """Return the steps 0, levels[0], levels[1] ... of each term, by score * gain / added bits.

        ``score`` and ``num_parameters`` have the shape of the grid; ``levels`` rise. The gain of q
        bits is u(q) = 1 - 2^(-2q), u(0) = 0.
        """
        reached = np.array([0, *levels])
        gain = np.diff(1.0 - 4.0**-reached)  # (levels,)
        cost = np.diff(reached)[:, None] * num_parameters.ravel()  # (levels, terms)
        cost[0] += scale_bits
        worth = score.ravel() * gain[:, None] / cost
        # Stable, and lower levels first: at equal worth every term gets its first bits before any
        # gets more.
        order = np.argsort(-worth.ravel(), kind="stable")
        level, term = np.divmod(order, score.size)
        return cls(term, reached[1:][level], cost.ravel()[order], score.shape)


def adaptive_bits(steps: UploadSteps, sent: BoolArray, *, budget_bits: int) -> BitsArray:
    """Return the bits of each term in ``sent``, by the steps most worth per bit that still fit.

    Exact where the budget is used up without passing over a step; else it may miss at most the
    worth of the first step passed over.
    """
    num_terms = sent.size
    bits = np.zeros(num_terms, dtype=np.uint8)
    left = budget_bits
    open_steps = np.flatnonzero(sent.ravel()[steps.term])
    while len(open_steps):
        spent = np.cumsum(steps.cost_bits[open_steps])
        num_taken = int(np.searchsorted(spent, left, side="right"))
        taken, rest = open_steps[:num_taken], open_steps[num_taken:]
        bits[steps.term[taken]] = steps.bits[taken]  # the last of a term's steps stays
        left -= int(spent[num_taken - 1]) if num_taken else 0
        # What does not fit now never will, and neither will what builds upon it.
        too_dear = rest[steps.cost_bits[rest] > left][::-1]
        ceiling = np.full(num_terms, np.iinfo(np.int64).max)
        ceiling[steps.term[too_dear]] = steps.bits[too_dear]  # reversed: the first one stays
        open_steps = rest[steps.bits[rest] < ceiling[steps.term[rest]]]
    return bits.reshape(steps.shape)


def uniform_bits(
    num_parameters: IntArray, sent: BoolArray, *, budget_bits: int, levels: Sequence[int]
) -> BitsArray:
    """Return the highest level at which all terms in ``sent`` fit, the same for all; else 0."""
    size = int(num_parameters[sent].sum())
    fitting = [q for q in levels if q * size + SCALE_BITS * int(sent.sum()) <= budget_bits]
    return np.where(sent, max(fitting, default=0), 0).astype(np.uint8)


def _stored_bits(name: WeightFormat) -> float:
    """Return the bits of a weight in memory, with its share of the group's scale and zero."""
    return FORMAT_BITS[name] + 8 * GROUP_BYTES[name] / GROUP
