"""Chooses among runs by entries such as ``seed=0,1`` and ``label!=haflq``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from analysis.runs.files import RunError
from analysis.runs.frames import RunSet
from simulator.config.plain_yaml import parse_yaml


def chosen(runs: RunSet, entries: Sequence[str]) -> RunSet:
    """Return the runs that all ``key=value,value`` and ``key!=value`` entries ask for.

    Raises RunError on an entry that is none, on a key that no run has, and where no run is left.
    """
    kept = set(runs.runs.index)
    for entry in entries:
        key, values, is_wanted = _entry(entry)
        kept &= set((runs.where if is_wanted else runs.without)(**{key: values}).runs.index)
        if not kept:
            there = ", ".join(runs.values(key))
            raise RunError(
                f"--where must leave at least one run, got {entry!r}; {key} is one of {there}"
            )
    return replace(runs, runs=runs.runs[runs.runs.index.isin(kept)])


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
