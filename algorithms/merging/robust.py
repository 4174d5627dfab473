"""Clips and trims updates that may do harm, under any strategy and before it aggregates.

Clipping by norm, as in Sun et al., "Can You Really Backdoor Federated Learning?", arXiv 1911.07963.

Trimming after the trimmed mean of Yin et al., "Byzantine-Robust Distributed Learning: Towards
Optimal Statistical Rates", ICML 2018, arXiv 1803.01498: of n values of a coordinate the
floor(share n) largest and smallest are not believed. They leave those out of a plain mean. Our
strategies have weights, masks and decompositions of their own, so instead a value outside the range
of those kept is moved to its edge (winsorized), and the strategy goes on as ever. That is our
reconstruction: no attacker's value leaves the range that honest ones span either way, as long as
attackers are at most that share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from annotated_types import Ge, Lt

from devices.vocabulary.plan import ClientUpdate, Factors
from traces.arrays import BoolArray, Float32Array
from traces.options import Options, Positive


@dataclass(frozen=True)
class Robustness(Options):
    """The server holds updates to this before it aggregates them; to nothing by default."""

    max_norm: Positive | None = None
    """The L2 norm of an update's change above which it is refused."""
    clip_norm: Positive | None = None
    """The L2 norm to which the change of a larger update is scaled down."""
    trim_share: Annotated[float, Ge(0), Lt(0.5)] = 0.0
    """The share of a coordinate's values that is not believed at either end."""

    def tame(self, updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
        """Return the updates, clipped and then trimmed."""
        tamed = list(updates)
        if self.clip_norm is not None:
            tamed = [clipped(update, self.clip_norm) for update in tamed]
        return winsorized(tamed, self.trim_share) if self.trim_share else tamed


AS_SENT = Robustness()


def update_norm(update: ClientUpdate) -> float:
    """Return the L2 norm of an update's change in factors and head, taken as one vector."""
    pairs = zip(_arrays(update), _starts(update), strict=True)
    with np.errstate(over="ignore", invalid="ignore"):
        steps = [end.astype(np.float64) - start for end, start in pairs]
    return math.sqrt(math.fsum(float(np.vdot(step, step)) for step in steps))


def clipped(update: ClientUpdate, norm: float) -> ClientUpdate:
    """Return the update, with its change scaled down to ``norm`` where it is larger."""
    size = update_norm(update)
    if size <= norm:
        return update
    share = np.float32(norm / size)
    pairs = zip(_arrays(update), _starts(update), strict=True)
    return _with_arrays(update, [start + share * (end - start) for end, start in pairs])


def winsorized(updates: Sequence[ClientUpdate], share: float) -> list[ClientUpdate]:
    """Return the updates, each number's change moved into the range that trimming keeps.

    Of n updates that sent a term the floor(share n) largest and smallest are not kept: fewer than
    1 / share updates stay as they are.
    """
    columns = zip(*map(_arrays, updates), strict=True)
    starts = zip(*map(_starts, updates), strict=True)
    sent = zip(*map(_sent, updates), strict=True)
    tamed = [
        _winsorize(np.stack(ends), np.stack(begins), np.stack(masks), share)
        for ends, begins, masks in zip(columns, starts, sent, strict=True)
    ]
    return [_with_arrays(u, [column[k] for column in tamed]) for k, u in enumerate(updates)]


def _winsorize(
    ends: Float32Array, starts: Float32Array, sent: BoolArray, share: float
) -> Float32Array:
    """Return (K, ...): one matrix of K updates winsorized; ``sent`` is broadcast to its shape."""
    sent = np.broadcast_to(sent, ends.shape)
    steps = ends - starts
    ranked = np.sort(np.where(sent, steps, np.inf), axis=0)  # values that were not sent sort last
    num_sent = sent.sum(axis=0)
    # 0.29 * 100 is slightly below 29 in binary and must count as 29.
    cut = np.minimum((share * num_sent + 1e-9).astype(np.int64), (num_sent - 1) // 2).clip(min=0)
    low = np.take_along_axis(ranked, cut[None], axis=0)
    high = np.take_along_axis(ranked, (num_sent - 1 - cut).clip(min=0)[None], axis=0)
    inside = sent & (low <= steps) & (steps <= high)
    moved = starts + np.clip(steps, low, high).astype(np.float32)
    result: Float32Array = np.where(inside | ~sent, ends, moved)
    return result


def _arrays(update: ClientUpdate) -> list[Float32Array]:
    adapter = update.adapter
    return [*(v for f in adapter.factors.values() for v in f), *adapter.head.values()]


def _starts(update: ClientUpdate) -> list[Float32Array]:
    """Return each of ``_arrays`` as it was before training."""
    start = update.broadcast.adapter
    factors = [value for key in update.adapter.factors for value in start.factors[key]]
    return [*factors, *(start.head[name] for name in update.adapter.head)]


def _sent(update: ClientUpdate) -> list[BoolArray]:
    """Return a mask for each of ``_arrays``: the numbers that were uploaded."""
    adapter, uploaded = update.adapter, update.plan.terms.uploaded
    masks: list[BoolArray] = []
    for key in adapter.factors:
        terms = uploaded[key.block, adapter.modules.index(key.module)]  # (R,)
        masks += [terms[:, None], terms[None, :]]
    return masks + [np.ones((1,) * values.ndim, dtype=np.bool_) for values in adapter.head.values()]


def _with_arrays(update: ClientUpdate, arrays: Sequence[Float32Array]) -> ClientUpdate:
    adapter, values = update.adapter, iter(arrays)
    factors = {key: Factors(next(values), next(values)) for key in adapter.factors}
    head = {name: next(values) for name in adapter.head}
    return replace(update, adapter=replace(adapter, factors=factors, head=head))
