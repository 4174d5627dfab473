"""Delivers updates: each reaches the server as an encoded message, which it may refuse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from algorithms.merging.robust import update_norm
from devices.vocabulary.controls import elementwise
from devices.vocabulary.plan import Adapter, ClientUpdate, Factors
from devices.vocabulary.trainer import TrainingResult
from devices.wire import wire
from devices.wire.messages import HEADER, framed
from simulator.config.faults import Byzantine
from simulator.engine.assignment import Assignment
from simulator.engine.seeds import stream
from traces.arrays import Float32Array


class RefusedUpdateError(Exception):
    """This error says why the server does not merge an update."""


class Attack(NamedTuple):
    """An attack is how a device that is not honest changes what it sends.

    A message is forged in its payload, with a header that fits: ``nan`` sets every bit of it, which
    makes each 32-bit number and each scale NaN, and ``wrong_shape`` leaves out its second half. The
    other kinds change the update before it is encoded, by ``strength`` times its own size.
    """

    config: Byzantine
    rng: np.random.Generator

    def on_update(self, adapter: Adapter, start: Adapter) -> Adapter:
        """Return the adapter that the device claims to have learned."""
        if self.config.kind in ("nan", "wrong_shape"):
            return adapter
        factors = {
            key: Factors(
                self._changed(a, start.factors[key].a), self._changed(b, start.factors[key].b)
            )
            for key, (a, b) in adapter.factors.items()
        }
        head = {name: self._changed(v, start.head[name]) for name, v in adapter.head.items()}
        return replace(adapter, factors=factors, head=head)

    def _changed(self, end: Float32Array, start: Float32Array) -> Float32Array:
        step, strength = end.astype(np.float64) - start, self.config.strength
        match self.config.kind:
            case "huge_norm":
                step = strength * step
            case "sign_flip":
                step = -strength * step
            case "noise":
                size = strength * math.sqrt(np.square(step).mean())
                step = step + size * self.rng.normal(size=step.shape)
        return (start + step).astype(np.float32)

    def on_message(self, message: bytes) -> bytes:
        """Return the message that the device sends instead of the honest one."""
        payload = message[HEADER.size :]
        match self.config.kind:
            case "nan":
                return framed("update", [b"\xff" * len(payload)])
            case "wrong_shape":
                return framed("update", [payload[: len(payload) // 2]])
        return message


def attack_of(config: Byzantine, work: Assignment) -> Attack:
    """Return the attack of the device that carries out this assignment."""
    return Attack(config, stream(work.wire_seed, "byzantine"))


def sent(
    work: Assignment,
    result: TrainingResult,
    attack: Attack | None,
    *,
    num_bytes: int,
    rate: float,
) -> bytes:
    """Return the message with which a device answers its plan, ``num_bytes`` long.

    ``rate`` is the learning rate of its steps, by which the change of a control variate follows
    from what the device says that it has learned.
    """
    start, adapter = work.broadcast.adapter, result.adapter
    if attack:
        adapter = attack.on_update(adapter, start)
    rng = np.random.default_rng(work.wire_seed)
    change = None
    if controls := work.broadcast.controls:
        change = controls.change(start, adapter, work.plan.local_steps * rate)
    message = wire.encode_update(adapter, start, plan=work.plan, rng=rng, control_change=change)
    assert len(message) == num_bytes, "a message must have the length that follows from its plan"
    return attack.on_message(message) if attack else message


def received(
    work: Assignment, message: bytes, result: TrainingResult, *, max_norm: float | None
) -> ClientUpdate:
    """Return the update that a message encodes.

    Raises RefusedUpdateError where it is no answer to the plan, holds a number that is not finite,
    or changes more than ``max_norm``.
    """
    start, controls, control = work.broadcast.adapter, work.broadcast.controls, None
    try:
        adapter = wire.decode_update(message, start, plan=work.plan)
        if controls:
            change = wire.decode_control_change(message, start, plan=work.plan)
            control = elementwise(np.add, controls.own, change)
    except ValueError as error:
        raise RefusedUpdateError(str(error)) from None
    for decoded in filter(None, (adapter, control)):
        for name, arrays in _by_name(decoded).items():
            if not all(np.isfinite(values).all() for values in arrays):
                raise RefusedUpdateError(f"an update must be finite, got NaN or inf in {name}")
    update = replace(update_of(work, adapter, result), control=control)
    if max_norm is not None and not (norm := update_norm(update)) <= max_norm:
        raise RefusedUpdateError(
            f"the norm of an update must be at most {max_norm:g} (aggregation.max_norm), "
            f"got {norm:.6g}"
        )
    return update


def update_of(work: Assignment, adapter: Adapter, result: TrainingResult) -> ClientUpdate:
    """Return the update that an adapter makes as the answer to its plan."""
    return ClientUpdate(
        plan=work.plan,
        broadcast=work.broadcast,
        adapter=adapter,
        num_examples=work.record.num_examples,
        train_loss=result.train_loss,
        timing=work.timing,
        squared_loss=result.squared_loss,
        own=None if work.plan.terms.sends_head else result.adapter,
    )


def _by_name(adapter: Adapter) -> Mapping[str, tuple[Float32Array, ...]]:
    factors = {f"block {key.block} {key.module}": pair for key, pair in adapter.factors.items()}
    return factors | {f"the head's {name}": (values,) for name, values in adapter.head.items()}
