"""Chooses among runs by entries such as ``seed=0,1`` and ``label!=haflq``."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.runs.files import RunError
from analysis.runs.frames import RunSet
from simulator.config.plain_yaml import parse_yaml


def chosen(runs: RunSet, entries: Sequence[str]) -> RunSet:
    """Return the runs that all ``key=value,value`` and ``key!=value`` entries ask for.

    Raises RunError on an entry that is none, on a key that no run has, and where no run is left.
    """
    found = runs
    for entry in entries:
        key, values, is_wanted = _entry(entry)
        found = (found.where if is_wanted else found.without)(**{key: values})
        if found.runs.empty:
            there = ", ".join(runs.values(key))
            raise RunError(
                f"--where must leave at least one run, got {entry!r}; {key} is one of {there}"
            )
    return found


def _entry(entry: str) -> tuple[str, tuple[object, ...], bool]:
    """Return key and values of an entry, and whether they are wanted or left out."""
    key, equals, text = entry.partition("=")
    try:
        values = parse_yaml(f"[{text}]")
    except ValueError:
        values = None
    name = key.removesuffix("!").strip()
    if not (name and equals and values):
        raise RunError(f"--where must read key=value,value or key!=value, got {entry!r}")
    return name, tuple(values), not key.endswith("!")
