"""Reads what can be read of a config that is wrong, so that its other names are checked too."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from simulator.config.errors_in_words import keys_of
from simulator.config.keys import Keys
from simulator.config.problems import shown_keys
from simulator.config.schema import RunConfig, read_section

GROUP: Mapping[str, Any] = {"profile": "jetson-nano-maxn", "link": {"mbps": [1.0, 1.0]}}
STAND_INS: Mapping[str, Any] = {
    "fleet": {"devices": [GROUP]},
    "pacing": {"kind": "synchronous", "cohort": 1},
    "stop": {"rounds": 1},
    "strategy": {"kind": "fedlora"},
    "name": "unnamed",
    "label": "unnamed",
}
"""Stand-ins for required sections that are wrong, so that the rest of a config can be checked."""


@dataclass(frozen=True)
class Readable:
    """This is the readable part of a wrong config, with stand-ins for its wrong keys."""

    config: RunConfig
    wrong: tuple[str, ...] = ()
    """The keys that had to be left out."""


def readable_part(raw: Mapping[str, Any], wrong: Sequence[Keys], folder: Path) -> Readable | None:
    """Return what can be read of a config some keys of which are wrong; None where nothing can.

    Its relative paths start at ``folder``. A wrong key stands at its default or, where it must be
    given, its section at a stand-in.
    """
    rest = {**copy.deepcopy(dict(raw)), "strategy": STAND_INS["strategy"]}
    left_out = [*map(shown_keys, wrong), "strategy"]
    for keys in wrong:
        _leave_out(rest, keys)
    # If the rest is still wrong, groups of devices and sections that lack a key are left out too.
    for _ in range(3):
        try:
            config = read_section(RunConfig, {**STAND_INS, **rest}, folder=folder)
            return Readable(config, tuple(left_out))
        except ValidationError as error:
            for first, *inner in (keys_of(one, RunConfig) for one in error.errors()):
                if first == "fleet" and inner[:1] == ["devices"] and inner[1:] and "fleet" in rest:
                    rest["fleet"]["devices"][inner[1]] = GROUP
                    left_out.append(f"fleet.devices.{inner[1]}")
                else:
                    rest.pop(str(first), None)
                    left_out.append(str(first))
    return None


def _leave_out(tree: Any, keys: Keys) -> None:
    """Remove a key from nested sections and lists; an entry of a list is left as it is."""
    for key in keys[:-1]:
        try:
            tree = tree[key]
        except (KeyError, IndexError, TypeError):  # the short form of a section or list was given
            return
    if isinstance(tree, dict) and keys:
        tree.pop(keys[-1], None)
