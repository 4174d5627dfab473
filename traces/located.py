"""Says where a path leads that a config names: it starts at the folder of the config's file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from traces.text import did_you_mean

MAX_LISTED = 10_000
"""Entries of a folder that are looked at for a name that was meant."""


class PathText(str):
    """A path or name as it was typed, which knows the folder that it starts at where it is a path.

    It is the typed text to all that compares, hashes, writes or draws by it, so that nothing of a
    run depends on where its files stand. Only what opens the file asks ``located``.
    """

    folder: Path

    def __new__(cls, text: str, folder: Path = Path()) -> PathText:
        """Return the text with the folder that it starts at, the working directory unless given."""
        self = super().__new__(cls, text)
        self.folder = folder
        return self


def located(named: str | Path) -> Path:
    """Return where a path leads; a plain text starts at the working directory."""
    return folder_of(named) / named


def folder_of(named: str | Path) -> Path:
    """Return the folder that a path starts at where it is relative."""
    return named.folder if isinstance(named, PathText) else Path()


def not_there(named: str | Path, names: Iterable[str] = ()) -> str:
    """Return the end of a message on what is not there: where it was looked for, what was meant.

    ``names`` are those that might be meant beside the files and folders near the path.
    """
    path = os.path.abspath(located(named))
    said = f"; nothing is at {path}"
    if os.path.lexists(named) and not os.path.lexists(path):
        said += (
            ": a relative path starts at the folder of the YAML, also in --set, not at the "
            f"working directory, where {named} is"
        )
    return said + (_near(named) or did_you_mean(named, names))


def _near(named: str | Path) -> str:
    """Return words for the entry that is nearest to the part where a path gets lost, if any is."""
    head, rest = Path(named), list[str]()
    while head.name and not os.path.isdir(folder_of(named) / head.parent):
        rest.insert(0, head.name)
        head = head.parent
    try:
        with os.scandir(folder_of(named) / head.parent) as entries:
            found = sorted(entry.name for entry in islice(entries, MAX_LISTED))
    except OSError:
        return ""
    for name in get_close_matches(head.name, found, n=1):
        whole = head.parent.joinpath(name, *rest)
        is_there = os.path.exists(folder_of(named) / whole)
        return f"; did you mean {(whole if is_there else head.parent / name).as_posix()}?"
    return ""
