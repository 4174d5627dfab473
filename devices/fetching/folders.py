"""Makes a directory in the user's cache folder out of what is downloaded: whole, or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import platformdirs

from devices.fetching.packages import FetchError


class Part(Protocol):
    """A part is one file that is fetched by name or address, and checked."""

    @property
    def pinned(self) -> str:
        """Return the name with its version, or the address."""
        ...

    def download(self, folder: Path) -> Path:
        """Download the file into ``folder`` and return its path. Raises FetchError."""
        ...


def cache_folder(name: str, sha256: str) -> Path:
    """Return the directory of what is fetched under this name and has this SHA-256."""
    cache = Path(platformdirs.user_cache_dir("fedclock", appauthor=False))
    return cache / "fetched" / f"{name}-{sha256[:12]}"


def fetch_folder(
    name: str,
    folder: Path,
    *,
    parts: Sequence[Part],
    convert: Callable[[list[Path], Path], None],
    say: Callable[[str], None],
) -> Path:
    """Download the parts and convert them into ``folder``, unless it is there; return it.

    ``convert`` is given the downloaded files and an empty directory, whose content it checks.
    Raises FetchError where a part cannot be had or the folder cannot be written.
    """
    if folder.is_dir():
        say(f"{name} is there already")
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder.parent) as scratch:
            files = []
            for number, part in enumerate(parts, start=1):
                say(f"{name}: downloading {part.pinned} ({number} of {len(parts)})")
                files.append(part.download(Path(scratch)))
            made = Path(scratch) / "made"
            made.mkdir()
            say(f"{name}: converting")
            convert(files, made)
            os.replace(made, folder)
    except OSError as error:
        raise FetchError(f"{name} cannot be written below {folder.parent}: {error}") from None
    return folder
