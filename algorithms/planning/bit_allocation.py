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

MAX_STEPS_AT_ONCE = 1 << 20
"""The largest number of steps, over all devices, that one pass allocates bits for."""
SCALE_BITS = 2 * 8 * SCALE_BYTES
"""The bits that a quantized term adds to its parameters: one scale for each of its factors."""

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
    """Upload steps are all S steps up in precision of all terms, the most worth per bit first."""

    term: IntArray  # (S,): flat index of the term
    bits: IntArray  # (S,): bits per parameter after the step
    cost_bits: IntArray  # (S,): bits on the wire that the step adds
    shape: tuple[int, ...]  # the shape of the grid of terms, (L, M, R)

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
        # The sort is stable and lower levels come first, so at equal worth every term gets its
        # first bits before any term gets more.
        order = np.argsort(-worth.ravel(), kind="stable")
        level, term = np.divmod(order, score.size)
        return cls(term, reached[1:][level], cost.ravel()[order], score.shape)


def adaptive_bits(
    steps: UploadSteps, sent: BoolArray, *, budget_bits: Sequence[int] | IntArray
) -> BitsArray:
    """Return (n, ...) the bits of n devices' terms in ``sent`` (n, ...), each within its budget.

    Each device takes the steps most worth per bit that still fit. Exact where its budget is used up
    without passing over a step; else it may miss at most the worth of the first step passed over.
    """
    budgets = np.array(budget_bits, dtype=np.int64)
    at_once = max(1, MAX_STEPS_AT_ONCE // len(steps.term))
    parts = [
        _adaptive_bits(steps, sent[k : k + at_once], budgets[k : k + at_once])
        for k in range(0, len(sent), at_once)
    ]
    return np.concatenate([np.zeros((0, *steps.shape), dtype=np.uint8), *parts])


def _adaptive_bits(steps: UploadSteps, sent: BoolArray, left: IntArray) -> BitsArray:
    num_devices, num_steps = len(sent), len(steps.term)
    flat = sent.reshape(num_devices, -1)
    # places (terms, levels) are the indices of each term's steps. bits_at gets one more entry, for
    # the index num_steps, which says below that no step is too dear.
    places = np.argsort(steps.term, kind="stable").reshape(flat.shape[1], -1)
    bits_at = np.append(steps.bits, np.iinfo(np.int64).max)
    bits = np.zeros(flat.shape, dtype=np.uint8)
    is_open = flat[:, steps.term]
    while is_open.any():
        costs = np.where(is_open, steps.cost_bits, 0)
        taken = is_open & (costs.cumsum(axis=1) <= left[:, None])
        last = np.where(taken[:, places], places, -1).max(axis=2)  # a term's highest step counts
        bits = np.where(last >= 0, bits_at[last], bits).astype(np.uint8)
        left = left - np.where(taken, costs, 0).sum(axis=1)
        # A step that does not fit now never will, since budgets only shrink; nor will higher steps
        # of the same term.
        is_open &= ~taken
        too_dear = is_open & (steps.cost_bits > left[:, None])
        first = np.where(too_dear[:, places], places, num_steps).min(axis=2)
        is_open &= steps.bits < bits_at[first][:, steps.term]
    return bits.reshape(sent.shape)


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
