"""Unpacks zip and tar archives that strangers made: never outside, and never more than allowed."""

from __future__ import annotations

import gzip
import lzma
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from devices.fetching.packages import FetchError

MAX_UNPACKED_BYTES = 1_000_000_000
MAX_MEMBERS = 100_000

_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(gzip.BadGzipFile, EOFError, RuntimeError, NotImplementedError, ValueError),
)
"""The errors that the libraries raise for broken, encrypted and unsupported archives."""
_PACKED: Mapping[str, Callable[[Path], Any]] = {  # Any: readers of bytes, of unlike classes
    ".gz": gzip.GzipFile,
    ".tgz": gzip.GzipFile,
    ".xz": lzma.LZMAFile,
    ".tar": partial(Path.open, mode="rb"),
}
"""What reads a tar that may be packed, by the end of its name."""

Members = list[tuple[str, Callable[[], IO[bytes]]]]
"""The files of an archive: the name of each, and what opens it."""


def is_archive(file: Path) -> bool:
    """Return whether a file is named as one of the archives that ``unpack`` reads."""
    return file.name.endswith((".zip", ".tar", ".tgz", ".tar.gz", ".tar.xz"))


def unpack(
    archive: Path, folder: Path, pattern: str, *, max_bytes: int = MAX_UNPACKED_BYTES
) -> list[Path]:
    """Unpack the files whose path ends as ``pattern`` says into ``folder``; return their paths.

    Hidden files and macOS's own are left out. Raises FetchError, before any file is written, where
    one would lie outside the folder or is a link or a device; and where the archive is damaged,
    packs more than ``max_bytes``, or holds too many files.
    """
    left = max_bytes
    unpacked = []
    try:
        with _opened(archive, max_bytes) as members:
            if len(members) > MAX_MEMBERS:
                raise _refused(archive, f"hold at most {MAX_MEMBERS:,} files", f"{len(members):,}")
            for place, read in [(_place(archive, name), read) for name, read in members]:
                if not _is_wanted(place, pattern):
                    continue
                target = folder / place
                target.parent.mkdir(parents=True, exist_ok=True)
                with read() as source:
                    left -= _copied(source, target, left, archive)
                unpacked.append(target)
    except FetchError:
        raise
    except _DAMAGE as error:
        raise _refused(archive, "be whole", str(error) or type(error).__name__) from None
    return unpacked


@contextmanager
def _opened(archive: Path, max_bytes: int) -> Iterator[Members]:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as packed:
            names = [one.filename for one in packed.infolist() if not one.is_dir()]
            yield [(name, _zip_reader(packed, name)) for name in names]
        return
    with tempfile.TemporaryFile(dir=archive.parent) as plain:
        # A header can claim any size and so make a reader allocate as much memory. The archive is
        # therefore unpacked to a file first, up to a limit.
        with _PACKED[archive.suffix](archive) as source:
            _copied(source, plain, max_bytes + 1024 * MAX_MEMBERS, archive)
        plain.seek(0)
        with tarfile.open(fileobj=plain, mode="r:") as tar:
            files = [one for one in tar if not one.isdir()]
            if odd := [one.name for one in files if not one.isfile()]:
                raise _refused(archive, "hold files alone, no link or device", repr(odd[0]))
            yield [(one.name, _tar_reader(tar, one)) for one in files]


def _zip_reader(packed: zipfile.ZipFile, name: str) -> Callable[[], IO[bytes]]:
    return lambda: packed.open(name)


def _tar_reader(tar: tarfile.TarFile, one: tarfile.TarInfo) -> Callable[[], IO[bytes]]:
    return lambda: cast(IO[bytes], tar.extractfile(one))  # not None, since this is a file


def _place(archive: Path, name: str) -> PurePosixPath:
    """Return where a file stands in its archive, a relative path that leads down alone."""
    place = PurePosixPath(name)
    is_odd = "\\" in name or ":" in name or "\0" in name
    if is_odd or place.is_absolute() or ".." in place.parts or not place.parts:
        raise _refused(archive, "keep its files inside its folder", repr(name))
    return place


def _is_wanted(place: PurePosixPath, pattern: str) -> bool:
    is_hidden = any(part.startswith((".", "__MACOSX")) for part in place.parts)
    return not is_hidden and place.match(pattern)


def _copied(source: IO[bytes], target: Path | IO[bytes], most: int, archive: Path) -> int:
    """Copy a stream and return its length in bytes. Raises FetchError if it exceeds ``most``."""
    if isinstance(target, Path):
        with target.open("xb") as out:
            return _copied(source, out, most, archive)
    size = 0
    while chunk := source.read(1 << 20):
        size += len(chunk)
        if size > most:
            raise _refused(archive, "unpack to no more than is allowed", f"over {most:,} bytes")
        target.write(chunk)
    return size


def _refused(archive: Path, rule: str, found: str) -> FetchError:
    return FetchError(f"the archive {archive.name} must {rule}, found {found}")
