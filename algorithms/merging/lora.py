"""Weighs and averages adapters, for several strategies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from devices.vocabulary.plan import Adapter, ClientUpdate, Factors, TermGrid
from traces.arrays import BoolArray, Float32Array, FloatArray

WEIGHT_TOLERANCE = 1e-9  # far above the rounding error in a sum of a cohort's float64 weights


class WeightsError(ArithmeticError):
    """This error says that the weights of a mean do not sum to one."""


def example_counts(updates: Sequence[ClientUpdate]) -> FloatArray:
    """Return (K,): the examples behind each update, whole numbers whose sums have no order."""
    return np.array([update.num_examples for update in updates], dtype=np.float64)


def example_weights(updates: Sequence[ClientUpdate]) -> FloatArray:
    """Return (K,): each update's share of the examples."""
    counts = example_counts(updates)
    shares: FloatArray = counts / counts.sum()
    return _checked(shares, least=1.0)


def holder_weights(updates: Sequence[ClientUpdate]) -> FloatArray:
    """Return (K, L, M, R): an update's share of a term's examples, among updates that sent it.

    Sums to one over K for a term that somebody sent, and to zero for one that nobody did.
    Those of one update alone may be read-only, since many share them.
    """
    if len(updates) == 1 and updates[0].num_examples > 0:
        terms = updates[0].plan.terms
        return _alone(terms) if terms.is_read_only else _alone.__wrapped__(terms)
    counts = _sent(updates) * example_counts(updates)[:, None, None, None]
    total = counts.sum(axis=0)
    weights: FloatArray = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    return _checked(weights, least=np.where(total > 0, 1.0, 0.0))


@lru_cache(maxsize=64)
def _alone(terms: TermGrid) -> FloatArray:
    """Return (1, L, M, R), read-only: the weights of one update, all of the examples of its terms.

    A pacing that merges each update alone asks for those of one grid again and again.
    """
    weights = terms.uploaded[np.newaxis].astype(np.float64)
    weights.flags.writeable = False
    return weights


def _checked(weights: FloatArray, *, least: float | FloatArray) -> FloatArray:
    """Return the weights (K, ...) if none is negative and each sum over K is in [least, 1].

    Raises WeightsError otherwise.
    """
    _checked_sums(weights, least=least)
    return weights


def _checked_sums(weights: FloatArray, *, least: float | FloatArray) -> FloatArray:
    """Return the sums over K of weights (K, ...) that ``_checked`` lets pass."""
    sums: FloatArray = np.add.reduce(weights)
    lowest = np.minimum.reduce(sums - least, axis=None)
    highest = np.maximum.reduce(sums, axis=None)
    is_average = (
        np.minimum.reduce(weights, axis=None) >= 0
        and lowest >= -WEIGHT_TOLERANCE
        and highest <= 1 + WEIGHT_TOLERANCE
    )
    if not is_average:
        raise WeightsError(
            f"the weights of an average must be at least 0 and sum to 1, or to less where what "
            f"nobody sent counts as zero, got sums from {sums.min():g} to {sums.max():g}"
        )
    return sums


def padded_weights(updates: Sequence[ClientUpdate]) -> FloatArray:
    """Return (K, L, M, R): an update's share of all examples; 0 for terms that it did not send.

    Used as weights of a mean, they count a missing term as zero. (A term that nobody sent keeps its
    value all the same: with A and B at zero it would have no gradient ever again.)
    """
    sent = _sent(updates)
    weights: FloatArray = sent * example_weights(updates)[:, None, None, None]
    return weights


def _sent(updates: Sequence[ClientUpdate]) -> BoolArray:
    """Return (K, L, M, R): whether each update uploads a term."""
    if len(updates) == 1:
        return updates[0].plan.terms.uploaded[np.newaxis]
    grids = {id(update.plan.terms): update.plan.terms for update in updates}
    row = {key: k for k, key in enumerate(grids)}
    each: BoolArray = np.stack([grid.uploaded for grid in grids.values()])
    return each[[row[id(update.plan.terms)] for update in updates]]


def mean_adapter(
    current: Adapter, updates: Sequence[ClientUpdate], term_weights: FloatArray
) -> Adapter:
    """Return the mean of the updates term by term, and of their heads by examples.

    ``term_weights`` is (K, L, M, R). A term whose weights are all zero keeps its current value.
    Updates are taken in order of device, so arrival order cannot reach the sum.
    Raises WeightsError where weights are negative, or more than one in sum.
    """
    # A run in timing only trains nothing and returns the adapter that was sent.
    is_unchanged = all(update.adapter is current for update in updates)
    if is_unchanged and len(updates) == 1 and term_weights is holder_weights(updates):
        return current  # every weight is 0 or 1
    sums = _checked_sums(term_weights, least=0.0)
    if is_unchanged and _is_whole(sums):
        return current
    order = sorted(range(len(updates)), key=lambda k: updates[k].plan.device_id)
    updates, term_weights = [updates[k] for k in order], term_weights[order]
    touched: BoolArray = np.any(term_weights > 0, axis=0)
    modules = current.modules
    adapters, term_weights = _distinct(updates, term_weights)
    factors = {}
    for key, old in current.factors.items():
        place = (key.block, modules.index(key.module))
        weights = term_weights[(slice(None), *place)]  # (K, R)
        keep = ~touched[place]  # (R,)
        a = np.einsum("kr,kri->ri", weights, [one.factors[key].a for one in adapters])
        b = np.einsum("kr,kor->or", weights, [one.factors[key].b for one in adapters])
        a, b = np.where(keep[:, None], old.a, a), np.where(keep, old.b, b)
        factors[key] = Factors(a.astype(np.float32), b.astype(np.float32))
    return replace(current, factors=factors, head=mean_head(current, updates))


def _is_whole(sums: FloatArray) -> bool:
    """Return True where the weights of each term that has any sum to one."""
    return bool(((np.abs(sums - 1.0) <= WEIGHT_TOLERANCE) | (sums == 0.0)).all())


def mean_head(current: Adapter, updates: Sequence[ClientUpdate]) -> dict[str, Float32Array]:
    """Return the mean by examples of the heads of all updates, in the order given."""
    adapters, shares = _distinct(updates, example_weights(updates))
    return {
        name: np.einsum("k,k...->...", shares, [one.head[name] for one in adapters]).astype(
            np.float32
        )
        for name in current.head
    }


def _distinct(
    updates: Sequence[ClientUpdate], weights: FloatArray
) -> tuple[list[Adapter], FloatArray]:
    """Return the D different adapters of K updates, and their weights summed to (D, ...).

    In timing only all devices bring the same one.
    """
    found = {id(update.adapter): update.adapter for update in updates}
    if len(found) == len(updates):
        return [update.adapter for update in updates], weights
    row = {key: k for k, key in enumerate(found)}
    summed = np.zeros((len(found), *weights.shape[1:]))
    np.add.at(summed, [row[id(update.adapter)] for update in updates], weights)
    return list(found.values()), summed


def squared_change(before: Adapter, after: Adapter, num_blocks: int) -> FloatArray:
    """Return (L,): the squared Frobenius norm of the change in all factors of each block."""
    change = np.zeros(num_blocks)
    for key, old in before.factors.items():
        for was, now in zip(old, after.factors[key], strict=True):
            step = now.astype(np.float64) - was
            change[key.block] += np.vdot(step, step)
    return change
