"""Checks every path that a config names, before anything is read."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

MAX_BYTES = 4_000_000_000
"""No file that a config names is larger; each reader may ask for less."""

MAX_PROFILE_BYTES = 10_000_000

MAX_SHOWN = 100


def stay_inside(named: Any, *, folder: Path = Path()) -> Any:
    """Return a name, or a path that starts at ``folder``, as it is; a value of no text too.

    What stands there must be a regular file or a folder of at most ``MAX_BYTES``. Raises ValueError
    where it is not, and where the path is relative and leads out of ``folder``, by ``..`` or by a
    symbolic link, also by one that stands in the folder that it names.
    """
    return checked_path(named, folder) if isinstance(named, str) else named


def profile_inside(named: str, *, folder: Path = Path()) -> str:
    """Return a profile as it is: a name, ``file.toml`` or ``file.toml:name``.

    Its file is held to the rules of ``stay_inside``. Raises ValueError where it breaks them.
    """
    path, ending, _ = named.partition(".toml")
    checked_path(path + ending, folder, max_bytes=MAX_PROFILE_BYTES)
    return named


def checked_path(named: str, folder: Path = Path(), *, max_bytes: int = MAX_BYTES) -> str:
    """Return the name or path as ``stay_inside`` does, held to a limit of its own in bytes."""
    if not named.isprintable():
        raise ValueError(f"a name or path must be printable, got {named[:MAX_SHOWN]!r}")
    is_relative = not os.path.isabs(named)
    if is_relative and ".." in Path(named).parts:
        raise ValueError(
            f"a relative path must not lead out of its folder by '..', got {named[:MAX_SHOWN]}; "
            f"give an absolute path"
        )
    path = folder / named
    try:
        there = os.lstat(path)
    except (OSError, ValueError):  # it is a name, or not there: whoever opens it says so
        return named
    if is_relative:
        inside = [path, *_links_in(path)] if stat.S_ISDIR(there.st_mode) else [path]
        for one in inside:
            _refuse_outside(one, folder, named)
    found = os.stat(path) if os.path.exists(path) else there
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise ValueError(f"a path must be a regular file or a folder, got {named[:MAX_SHOWN]}")
    if stat.S_ISREG(found.st_mode) and found.st_size > max_bytes:
        raise ValueError(
            f"a file must be at most {max_bytes} bytes, got {found.st_size} in {named[:MAX_SHOWN]}"
        )
    return named


def _links_in(folder: Path) -> list[Path]:
    """Return the symbolic links directly in a folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_symlink())
    except OSError:
        return []


def _refuse_outside(path: Path, folder: Path, named: str) -> None:
    """Raise ValueError where a path really lies outside the folder."""
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(folder)):
        raise ValueError(
            f"a relative path must not lead out of its folder by a symbolic link, got "
            f"{named[:MAX_SHOWN]}, which is {real}; give an absolute path"
        )
