"""Says in what two configs differ, in few enough words for a message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.config.keys import flatten
from simulator.config.schema import NOT_SIMULATED

MAX_DIFFERENCES, MAX_SHOWN = 6, 40
"""How many unlike settings a message names, and how many characters of each value."""


def settings_that_differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return in brackets the keys of two configs that differ, without the strategy's own.

    Only the first few are named, and long values are cut: a fleet is a list of many keys.
    """
    left, right = flatten(one), flatten(other)
    keys = [
        key
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
        and not key.startswith("strategy.")
        and key not in {*NOT_SIMULATED} - {"seed"}
    ]
    pairs = [_unlike(key, left.get(key), right.get(key)) for key in keys[:MAX_DIFFERENCES]]
    if more := len(keys) - len(pairs):
        pairs.append(f"{more} more")
    return f" ({', '.join(pairs)})" if pairs else ""


def _unlike(key: str, left: object, right: object) -> str:
    """Return how two values differ; for two lists, how the first unlike entries do."""
    if isinstance(left, list) and isinstance(right, list):
        if len(left) != len(right):
            return f"{key}: {len(left)} / {len(right)} entries"
        place = next(
            k for k, pair in enumerate(zip(left, right, strict=True)) if pair[0] != pair[1]
        )
        pair = left[place], right[place]
        if not (isinstance(pair[0], dict) and isinstance(pair[1], dict)):
            return f"{key}.{place}: {_short(pair[0])} / {_short(pair[1])}"
        parts = [flatten(entry) for entry in pair]
        first = next(k for k in parts[0] | parts[1] if parts[0].get(k) != parts[1].get(k))
        return _unlike(f"{key}.{place}.{first}", parts[0].get(first), parts[1].get(first))
    return f"{key}: {_short(left)} / {_short(right)}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."
