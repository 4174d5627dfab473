"""Keeps training results on disk from one run to the next, so that nothing is trained twice.

A result is a function of weights, data, plan, broadcast, seed, dtype and code, and its key says
them all. So a comparison on other links, where cohorts and plans are the same, trains nothing.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import platformdirs

import devices
from simulator.config.problems import UserError
from simulator.log.disk import clear_leftovers
from simulator.workers.kept_results import (
    SUFFIX,
    DamagedResultError,
    Tensors,
    read_result,
    write_result,
)
from simulator.workers.kept_tokens import SUFFIX as TOKENS_SUFFIX

T = TypeVar("T")
GB = 10**9
DEFAULT_GB = 4.0
OWN_FOLDER = "fedclock-results"
"""The cache's folder inside the one that a user names; no file outside it is read or deleted."""
_OWN_NAME = re.compile(rf"[0-9a-f]{{40}}({re.escape(SUFFIX)}|{re.escape(TOKENS_SUFFIX)})")


class ResultCache:
    """A result cache is a folder of at most ``max_bytes`` of results, which processes may share.

    Nothing in it can stop or spoil a run. Where the folder fails, it is left out from then on, and
    a result in it that is damaged is trained again; ``complaints`` says so, each once. Files that
    are not its own, by place, name and kind, are neither read nor counted nor deleted.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Make the folder where it is missing. Raises UserError where it may hold nothing."""
        if max_bytes <= 0:
            raise UserError(f"--cache-gb must be above 0, got {max_bytes / GB:g}")
        self.folder, self.max_bytes = folder, max_bytes
        self._is_left_out = self._has_damage = False
        self.said: list[str] = []  # all complaints so far
        self._num_told = 0
        self._attempt(self._open)

    def complaints(self) -> list[str]:
        """Return what went wrong with the cache since the last call, in words."""
        untold, self._num_told = self.said[self._num_told :], len(self.said)
        return untold

    def read(self, key: str, decode: Callable[[Tensors], T]) -> T | None:
        """Return a decoded result, or None where there is none that can be used."""
        return self._attempt(partial(read_result, self.folder / f"{key}{SUFFIX}", decode))

    def write(self, key: str, tensors: Tensors) -> None:
        """Keep a result, where the folder can take it."""
        self._attempt(partial(write_result, self.folder / f"{key}{SUFFIX}", tensors))

    def trim(self) -> None:
        """Remove the results that were used the longest ago, until the rest is within the limit."""
        self._attempt(self._trim)

    def _attempt(self, act: Callable[[], T]) -> T | None:
        """Do something in the folder, unless it is left out; leave it out where that fails."""
        if self._is_left_out:
            return None
        try:
            return act()
        except DamagedResultError as error:
            if not self._has_damage:
                self.said.append(f"cache: {error}: trained again, as are others like it")
            self._has_damage = True
        except (OSError, MemoryError) as error:
            self._is_left_out = True
            self.said.append(
                f"cache: {self.folder} cannot be used and is left out: {error}; choose another "
                "folder with --cache, or do without: --no-cache"
            )
        return None

    def _open(self) -> None:
        """Raise OSError unless the folder is one of its own that can be used."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.folder.is_symlink():
            raise NotADirectoryError("it must be a folder of its own, not a link")
        if not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError("it must be a folder that can be read and written")

    def _trim(self) -> None:
        clear_leftovers(self.folder)
        found = sorted(self._files())
        total = sum(size for _, size, _ in found)
        for _, size, name in found:
            if total <= self.max_bytes:
                return
            (self.folder / name).unlink(missing_ok=True)
            total -= size

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """Yield last use, size and name of each result; links and folders are none."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another process may have removed the file
                    if _OWN_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        status = entry.stat(follow_symlinks=False)
                        yield status.st_mtime, status.st_size, entry.name


def open_cache(folder: Path | None, max_gb: float) -> ResultCache:
    """Return the cache in this folder, or else in the user's own cache folder.

    Raises UserError where it may hold nothing.
    """
    own = platformdirs.user_cache_path("fedclock", appauthor=False)
    place = folder / OWN_FOLDER if folder else own / "results"
    logging.getLogger("fedclock").info(
        "keeps and reuses training results in %s, up to %g GB", place, max_gb
    )
    return ResultCache(place, int(max_gb * GB))


@cache
def code_sha256() -> str:
    """Return the SHA-256 of the code that trains: another version may come to other digits."""
    root = Path(str(devices.__file__)).parent
    sha = hashlib.sha256(platform.machine().encode())
    for file in sorted(root.rglob("*.py")):
        sha.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return sha.hexdigest()
