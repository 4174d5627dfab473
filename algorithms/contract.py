"""Says where a strategy's results break its contract, in words that name the clause.

A strategy from a file is asked this at every call.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from algorithms.strategy import ServerState
from devices.vocabulary.plan import Adapter, Broadcast, DeviceId, Factors, TrainingPlan

SHOWN = 80
"""The number of characters of a wrong value that a message quotes."""


def wrong_result(method: str, arguments: Sequence[Any], result: object) -> str | None:
    """Return what the method must return and what it did; None where the result can be used.

    ``arguments`` are those of the call, without ``self``. Plans are held against the rank of the
    adapter in the state.
    """
    match method:
        case "init":
            return wrong_state(result, arguments[0], 0)
        case "plan":
            return wrong_plans(result, arguments[0].adapter, arguments[2])
        case "broadcast":
            return wrong_broadcast(result, arguments[0])
        case "own_model":
            wrong = wrong_adapter(result, arguments[0].adapter)
            return _prefixed("the model of a device", wrong)
        case "aggregate":
            return wrong_state(result, arguments[0].adapter, arguments[0].version + 1)
    return None


def wrong_scale(strategy: Any) -> Iterator[str]:
    """Say what keeps a strategy's rank and alpha from making an adapter."""
    if not isinstance(strategy.rank, int) or strategy.rank < 1:
        yield f"rank must be a whole number of at least 1, got {strategy.rank!r}"
    if not isinstance(strategy.alpha, int | float) or not 0 < strategy.alpha < math.inf:
        yield f"alpha must be a finite number above 0, got {strategy.alpha!r}"


def wrong_state(given: object, adapter: Adapter, version: int) -> str | None:
    """Say what keeps a value from being a state of this version with the adapter's shapes."""
    if not isinstance(given, ServerState):
        return f"a ServerState, got {_shown(given)}"
    if given.version != version:
        how = "state.advance(adapter, memory)" if version else "ServerState(0, adapter, memory)"
        return f"a state of version {version}, as {how} does, got version {given.version}"
    return _prefixed("a state with an adapter", wrong_adapter(given.adapter, adapter))


def wrong_broadcast(given: object, state: ServerState[Any]) -> str | None:
    """Say what keeps a value from being a broadcast of the state's version and shapes."""
    if not isinstance(given, Broadcast):
        return f"a Broadcast, got {_shown(given)}"
    if given.version != state.version:
        return f"a Broadcast of the state's version, {state.version}, got {given.version}"
    return _prefixed("a Broadcast with an adapter", wrong_adapter(given.adapter, state.adapter))


def wrong_plans(given: object, adapter: Adapter, cohort: Sequence[DeviceId]) -> str | None:
    """Say what keeps a value from being plans, at most one for each device of the cohort."""
    if not isinstance(given, Sequence):
        return f"a Sequence, got {_shown(given)}"
    if not all(isinstance(plan, TrainingPlan) for plan in given):
        return f"TrainingPlans, got {_shown(given)}"
    devices = [plan.device_id for plan in given]
    if len(set(devices)) < len(devices) or not set(devices) <= set(cohort):
        return f"at most one plan for each device of {list(cohort)}, got plans for {devices}"
    num_blocks = 1 + max(key.block for key in adapter.factors)
    shape = (num_blocks, len(adapter.modules), adapter.rank)
    for plan in given:
        if plan.terms.held.shape != shape:
            return (
                f"plans whose term grids have the shape (L, M, R) of the global adapter, {shape}, "
                f"as fleet.model.grid_shape(self.rank) gives, got {plan.terms.held.shape} for "
                f"device {plan.device_id}"
            )
    return None


def wrong_adapter(given: object, expected: Adapter) -> str | None:
    """Say what keeps a value from being a float32 adapter like the expected one."""
    if not isinstance(given, Adapter):
        return f"that is an Adapter, got {_shown(given)}"
    if given.scale != expected.scale:
        return f"of the scale {expected.scale:g}, got {given.scale!r}"
    for place, values, like in _arrays(given, expected):
        if values is None:
            return f"that has {place}"
        if not isinstance(values, np.ndarray):
            return f"whose {place} is an array, got {_shown(values)}"
        if values.shape != like.shape:
            return f"whose {place} has the shape {like.shape}, got {values.shape}"
        if values.dtype != np.float32:
            return f"whose {place} is float32, got {values.dtype}: use .astype(np.float32)"
    return None


def _arrays(given: Adapter, expected: Adapter) -> Iterable[tuple[str, object, Any]]:
    """Yield each expected array: its place in words, what was given, and what it is like.

    What was given is None where it is missing; a name that is not expected counts as missing too.
    """
    factors, head = cast(Any, given.factors), cast(Any, given.head)
    for what, found, wanted in (
        ("factors", factors, expected.factors),
        ("head", head, expected.head),
    ):
        if not isinstance(found, Mapping) or list(found) != list(wanted):
            names = [str(key).removeprefix("ModuleKey") for key in wanted]
            yield f"the {what} of {', '.join(names)} in this order, got {_shown(found)}", None, None
            return
    for key, like in expected.factors.items():
        pair = factors[key]
        if not isinstance(pair, tuple) or len(pair) != len(Factors._fields):
            yield (
                f"Factors(a, b) in block {key.block}, {key.module}, got {_shown(pair)}",
                None,
                None,
            )
            return
        for name, values, wanted_values in zip(Factors._fields, pair, like, strict=True):
            yield f"{name} of block {key.block}, {key.module}", values, wanted_values
    for name, wanted_values in expected.head.items():
        yield f"head tensor {name}", head[name], wanted_values


def _prefixed(what: str, wrong: str | None) -> str | None:
    return f"{what} {wrong}" if wrong else None


def _shown(given: object) -> str:
    return f"{given!r:.{SHOWN}}"
