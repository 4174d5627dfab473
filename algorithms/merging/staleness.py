"""Adjusts updates that started from an older model than the one that they are merged into."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from algorithms.pacing import Pacing
from devices.vocabulary.plan import Adapter, Broadcast, ClientUpdate, Factors, ModuleKey
from traces.arrays import Float32Array


def up_to_date(update: ClientUpdate, current: Broadcast, pacing: Pacing) -> ClientUpdate:
    """Return the update as it counts for ``current``, by the pacing's share and what that mixes.

    An update that started from ``current`` itself and counts in full is returned as it is.
    """
    staleness = current.version - update.broadcast.version
    share = pacing.mixing(staleness)
    if staleness == 0 and share == 1.0:
        return update
    if update.adapter is current.adapter and update.plan.terms.use != "fresh":
        return update.counted_for(current)  # nothing was trained, so nothing is mixed
    update = replace(update, started_from=update.broadcast.version)
    if pacing.mixes == "model":
        return with_model_mixed(update, current, share)
    return with_change_added(update, current, share)


def with_change_added(update: ClientUpdate, current: Broadcast, share: float) -> ClientUpdate:
    """Return the update as if ``share`` of its change had been made from ``current``.

    A number x of the current model becomes x + share (x_k - x_start). What a device did not send
    has no change, and stands as it is in ``current``. Where the device started from a fresh B at
    zero, B A is the change itself: it fades as it is, and keeps its own start.
    """
    start, end, now = update.broadcast.adapter, update.adapter, current.adapter
    head = _moved_head(now, start, end, share)
    if update.plan.terms.use == "fresh":
        return _faded(update, head, share)
    factors = {
        key: Factors(
            _moved(now.factors[key].a, start.factors[key].a, end.factors[key].a, share),
            _moved(now.factors[key].b, start.factors[key].b, end.factors[key].b, share),
        )
        for key in now.factors
    }
    adapter = replace(now, factors=factors, head=head)
    return replace(update, broadcast=current, adapter=adapter)


def with_model_mixed(update: ClientUpdate, current: Broadcast, share: float) -> ClientUpdate:
    """Return the update as a model of which ``share`` is the device's, and the rest ``current``.

    A number x of the current model that the device sent becomes x + share (x_k - x); every other
    one stands. Where the device started from a fresh B at zero, B A is a change and no model: it
    fades as it is and keeps its own start, and the head alone is mixed.
    """
    end, now = update.adapter, current.adapter
    head = _moved_head(now, now, end, share) if update.plan.terms.sends_head else dict(now.head)
    if update.plan.terms.use == "fresh":
        return _faded(update, head, share)
    factors = {key: _mixed_factors(update, now, key, share) for key in now.factors}
    adapter = replace(now, factors=factors, head=head)
    return replace(update, broadcast=current, adapter=adapter)


def _mixed_factors(update: ClientUpdate, now: Adapter, key: ModuleKey, share: float) -> Factors:
    """Return the factors of one module, with the terms that were sent mixed in."""
    terms, (a, b), end = update.plan.terms, now.factors[key], update.adapter.factors[key]
    sent = terms.uploaded[key.block, now.modules.index(key.module)]  # (R,)
    if "a" in terms.uploaded_factors:
        a = np.where(sent[:, None], _moved(a, a, end.a, share), a)
    if "b" in terms.uploaded_factors:
        b = np.where(sent, _moved(b, b, end.b, share), b)
    return Factors(a, b)


def _moved_head(
    now: Adapter, start: Adapter, end: Adapter, share: float
) -> dict[str, Float32Array]:
    return {
        name: _moved(now.head[name], start.head[name], end.head[name], share) for name in now.head
    }


def _moved(now: Float32Array, start: Float32Array, end: Float32Array, share: float) -> Float32Array:
    """Return ``now`` moved by a share of the way from ``start`` to ``end``."""
    moved: Float32Array = now + np.float32(share) * (end - start)
    return moved


def _faded(update: ClientUpdate, head: dict[str, Float32Array], share: float) -> ClientUpdate:
    """Return the update with this head, and with B (so B A too) times the share."""
    factors = {
        key: Factors(a, np.float32(share) * b) for key, (a, b) in update.adapter.factors.items()
    }
    return replace(update, adapter=replace(update.adapter, factors=factors, head=head))
