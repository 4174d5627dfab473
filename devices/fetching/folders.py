"""Makes a directory in the user's cache folder out of packages: whole, or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import platformdirs

from devices.fetching.packages import FetchError, Package, download


def cache_folder(name: str, sha256: str) -> Path:
    """Return the directory of what is fetched under this name and has this SHA-256."""
    cache = Path(platformdirs.user_cache_dir("fedclock", appauthor=False))
    return cache / "fetched" / f"{name}-{sha256[:12]}"


def fetch_folder(
    name: str,
    folder: Path,
    *,
    packages: Sequence[Package],
    convert: Callable[[list[Path], Path], None],
    say: Callable[[str], None],
) -> Path:
    """Download the packages and convert them into ``folder``, unless it is there; return it.

    ``convert`` is given the downloaded files and an empty directory, whose content it checks.
    Raises FetchError where a package cannot be had or the folder cannot be written.
    """
    if folder.is_dir():
        say(f"{name} is there already")
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder.parent) as scratch:
            parts = []
            for number, package in enumerate(packages, start=1):
                say(f"{name}: downloading {package.pinned} ({number} of {len(packages)})")
                parts.append(download(package, Path(scratch)))
            made = Path(scratch) / "made"
            made.mkdir()
            say(f"{name}: converting")
            convert(parts, made)
            os.replace(made, folder)
    except OSError as error:
        raise FetchError(f"{name} cannot be written below {folder.parent}: {error}") from None
    return folder
