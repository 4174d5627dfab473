"""Sets keys of a config from outside its file, as ``--set key.key=value`` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from simulator.config.keys import RATE, flatten, kinds_of, locate, members
from simulator.config.own_strategy import SCALE, names_file
from simulator.config.plain_yaml import parse_yaml
from simulator.config.problems import shown, shown_keys
from simulator.config.schema import RunConfig

OF_EVERY_KIND: Mapping[str, Sequence[str]] = {
    "shards": (),
    "faults.byzantine": ("share", "schedule"),
    "cost": ("compute_bits", "attention", "lora_dropout", "model", "revision", "targets"),
    **dict.fromkeys(("pacing", "selection"), SCALE),
    "server_optimizer": ("learning_rate",),
    "strategy": (*SCALE, RATE),
}
"""Sections with several kinds, and those of their options that mean the same in every kind."""


def override_all(raw: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Set ``a.b=value`` for each override, and return what is wrong with any, one line each.

    ``strategy.x`` reaches every one of ``strategies``.
    """
    before = flatten(raw)
    assigned: dict[str, Any] = {}
    problems: list[str] = []
    for override in overrides:
        try:
            for place, value in _assignments(raw, override):
                _assign(raw, place, value)
                assigned[".".join(place)] = value
        except ValueError as error:
            problems.append(str(error))
    for key, value in assigned.items():
        problems += _switch_problems(key, value, before, assigned)
    return problems


def _assignments(raw: Mapping[str, Any], override: str) -> list[tuple[list[str], Any]]:
    """Return the keys that an override sets, each with the value. Raises ValueError."""
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise ValueError(f"an override must read key.key=value, got {shown(override)}")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise ValueError(
            f"the value of {shown_keys(keys)} must be valid YAML, but {error}"
        ) from None
    strategies = raw.get("strategies")
    reaches_all = keys[0] == "strategy" and len(keys) > 1 and isinstance(strategies, dict)
    roots = [["strategies", str(label)] for label in strategies or ()] if reaches_all else []
    return [([*root, *keys[1:]], value) for root in roots] or [(keys, value)]


def _assign(raw: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Set a key of nested sections. Raises ValueError where one on the way is no section."""
    for depth, key in enumerate(keys[:-1], start=1):
        there = raw.setdefault(key, {})
        if isinstance(there, list):
            raise ValueError(f"an override must not reach into a list, got {key}")
        if not isinstance(there, dict):
            section = ".".join(keys[:depth])
            raise ValueError(
                f"an override must not turn a value into a section: {section} is "
                f"{shown(there)}, got {'.'.join(keys)}; give the section as a whole, as in "
                f"{section}='{{{'.'.join(keys[depth:])}: {shown(value)}}}'"
            )
        raw = there
    raw[keys[-1]] = value


def _switch_problems(
    place: str, value: Any, before: Mapping[str, Any], assigned: Mapping[str, Any]
) -> list[str]:
    """Return what is wrong where another ``kind`` would inherit the options of the one before."""
    section, _, key = place.rpartition(".")
    shared = OF_EVERY_KIND.get("strategy" if section.startswith("strategies.") else section)
    if key != "kind" or shared is None:
        return []
    kind = before.get(place) or _default_kind(section)
    left = [
        name.removeprefix(f"{section}.")
        for name in before
        if name.startswith(f"{section}.") and name not in assigned and name != place
    ]
    left = [name for name in left if name.partition(".")[0] not in shared]
    if not left or kind in (None, value) or not _is_kind(section, value):
        return []
    return [
        f"an override must not leave options of another kind behind: {section} is of kind "
        f"{shown(kind)} and has {', '.join(left)}, got {place}={value}; give the "
        f"section as a whole, as in {section}='{{kind: {value}}}'"
    ]


def _is_kind(section: str, value: Any) -> bool:
    """Tell whether a section may be of this kind; one that is none is an error of its own."""
    keys = ["strategy"] if section.startswith("strategies.") else section.split(".")
    kinds = [kind for hint in locate(RunConfig, keys)[1] for arm in members(hint)
             for kind in kinds_of(arm)]  # fmt: skip
    return not kinds or value in kinds or names_file(value)


def _default_kind(section: str) -> Any:
    """Return the kind of a section that does not say it; None where there is no such default."""
    first, *rest = section.split(".")
    default: Any = {field.name: field.default for field in fields(RunConfig)}.get(first)
    for key in rest:
        default = getattr(default, key, None)
    return getattr(default, "kind", None)
