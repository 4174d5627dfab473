"""Writes files that are whole at any instant, and clears what unfinished ones left over.

What is written stands under a name of its own until it is whole, and its writer holds a lock on it.
The lock ends with the process, however that ends, so whoever finds such a name without a lock may
remove it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

PARTIAL = ".partial"
_LEFTOVER = re.compile(r"\.(?P<name>.*)\.[0-9a-f]{12}\.partial")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file in one step: a reader, even after a crash, sees the old content or the new."""
    partial = _beside(path.parent, path.name)
    try:
        with os.fdopen(_create(partial, _new_file), "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a file whose name the user gave, and clear what a killed command left of it."""
    clear_leftovers(path.parent, path.name)
    write_atomically(path, content)


@contextmanager
def staging(place: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder inside ``place`` that is removed afterwards, also after a failure.

    ``name`` says what is made there: a later call of the same name removes what a kill left.
    """
    clear_leftovers(place, name)
    folder = _beside(place, name)
    descriptor = None
    try:
        descriptor = _create(folder, _new_folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:  # None if the folder's creation was interrupted
            os.close(descriptor)


@contextmanager
def writing_into(folder: Path, *inner: str) -> Iterator[Path]:
    """Yield a folder whose files move into ``folder`` once the block has ended well.

    Until then the files of ``folder`` stay as they are, and after a failure too; files of other
    names stay in any case. Each file is replaced in one step. ``folder`` may be a mount point.
    Raises OSError where a folder within it is a link, which would lead away: before the block for
    those that ``inner`` names, after it for others.
    """
    for name in inner:
        _refuse_link(folder / name)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with staging(folder, folder.name) as staged:
            yield staged
            for file in sorted(path for path in staged.rglob("*") if path.is_file()):
                target = folder / file.relative_to(staged)
                _make_inside(folder, target.parent)
                _move(file, target)
    except BaseException:
        with suppress(OSError):  # a folder that is not empty stays
            for place in made:
                place.rmdir()
        raise


def _make_inside(folder: Path, inner: Path) -> None:
    """Make the folders down to ``inner``. Raises OSError where a link among them leads away."""
    place = folder
    for part in inner.relative_to(folder).parts:
        place = place / part
        _refuse_link(place)
        place.mkdir(exist_ok=True)


def _refuse_link(place: Path) -> None:
    if place.is_symlink():
        raise NotADirectoryError(f"{place} must be a folder itself, not a link")


def clear_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what processes that were killed left in ``folder`` of files not yet whole.

    Only of the file or folder ``name``, where it is given. What another process is writing stays.
    """
    with suppress(OSError):  # a folder that is missing or unreadable needs no clearing
        for path in list(folder.iterdir()):
            found = _LEFTOVER.fullmatch(path.name)
            if found and name in (None, found["name"]):
                _remove_unlocked(path)


def flush_to_disk(path: Path) -> None:
    """Return once the file, or the names in a folder, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_table(path: Path, table: pa.Table) -> None:
    """Replace a Parquet file in one step; the caller holds a lock on its folder."""
    partial = path.with_name(path.name + PARTIAL)
    pq.write_table(table, partial)
    os.replace(partial, path)


def _beside(place: Path, name: str) -> Path:
    return place / f".{name}.{secrets.token_hex(6)}{PARTIAL}"


def _new_file(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)


def _new_folder(path: Path) -> int:
    path.mkdir()
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def _create(path: Path, make: Callable[[Path], int]) -> int:
    """Make a file or folder and lock it; return its descriptor, which holds the lock."""
    while True:
        descriptor = make(path)
        with suppress(OSError):  # some file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
                return descriptor
        os.close(descriptor)  # another process removed the file before it was locked


def _remove_unlocked(path: Path) -> None:
    """Remove a leftover, unless its writer is alive. A link is left alone."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)


def _move(file: Path, target: Path) -> None:
    try:
        os.replace(file, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        write_atomically(target, file.read_bytes())  # the target is on another file system
