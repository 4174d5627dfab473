"""Finds a key of a config among the types that say what may stand there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Annotated, Any, get_args, get_origin

from pydantic import Discriminator, Tag

from simulator.config.types import OneOf
from traces.options import is_union, option_hints

Keys = list[str | int]

RATE = "learning_rate"
"""A key that every strategy may have, in place of ``training.learning_rate`` for its runs."""


def locate(root: type, place: Sequence[str | int]) -> tuple[Keys, list[Any]]:
    """Return the file's keys on the way to a place, and the annotations that may stand there.

    ``place`` is where pydantic found an error in a config of the type ``root``. It names the member
    of a union that was tried among the keys; those names are left out.
    """
    keys: Keys = []
    hints: list[Any] = [root]
    for part in place:
        arms = [arm for hint in hints for arm in members(hint)]
        if variants := [kinds[part] for arm in arms if part in (kinds := kinds_of(arm))]:
            hints = variants
        elif found := [inner for arm in arms for inner in _inside(arm, part)]:
            keys.append(part)
            hints = found
    return keys, hints


def members(hint: Any) -> Iterator[Any]:
    """Yield the types that a value of this annotation may have; one chosen by its kind is one."""
    if kinds_of(hint):
        yield hint
    elif get_origin(hint) is Annotated:
        yield from members(get_args(hint)[0])
    elif is_union(hint):
        for arm in get_args(hint):
            yield from members(arm)
    else:
        yield hint


def kinds_of(hint: Any) -> Mapping[Any, Any]:
    """Return the types among which a kind or a form chooses, by name; none where none does."""
    if get_origin(hint) is not Annotated:
        return {}
    base, *rules = get_args(hint)
    for rule in rules:
        if isinstance(rule, OneOf):
            return rule.kinds
        if isinstance(rule, Discriminator):
            return {_tag(arm): get_args(arm)[0] for arm in get_args(base)}
    return {}


def is_section(hint: Any) -> bool:
    """Return whether an annotation is a class of keys and values."""
    return isinstance(hint, type) and is_dataclass(hint)


def names_of(section: type) -> list[str]:
    """Return the keys of a section, ``kind`` first where that chooses it."""
    names = list(option_hints(section))
    chosen = isinstance(getattr(section, "kind", None), str) and "kind" not in names
    return ["kind", *names] if chosen else names


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``{"a": {"b": 1}}`` as ``{"a.b": 1}``, with keys as an override names them."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def kind_in(value: Any) -> str | None:
    """Return the ``kind`` that a section names; None where it is no section or names none."""
    return value.get("kind") if isinstance(value, dict) else None


def _inside(hint: Any, part: str | int) -> list[Any]:
    """Return what may stand under a key or at an index of a value; nothing where it has none."""
    if is_section(hint):
        return [inner for name, inner in option_hints(hint).items() if name == part]
    inner = get_args(hint)
    if get_origin(hint) is tuple and isinstance(part, int):
        return [inner[0] if inner[1:] == (...,) else inner[min(part, len(inner) - 1)]]
    return [inner[1]] if get_origin(hint) is dict else []


def _tag(arm: Any) -> str:
    return str(next(rule.tag for rule in get_args(arm) if isinstance(rule, Tag)))
