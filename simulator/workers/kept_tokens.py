"""Keeps the tokens of texts in a file, which every process that trains on them maps.

The file lies behind a checksum over its name and content, as kept results do, so whatever else
stands in its place is never used, and made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from devices.datasets.dataset import Split
from devices.tasks.rows import Array, from_arrays, to_arrays
from devices.tasks.task import Encoded
from simulator.workers.kept_results import (
    CHECKSUM_BYTES,
    DamagedResultError,
    checksum,
    regular_file,
    write_result,
)

SUFFIX = ".tokens"
_DTYPES = {"I64": np.int64, "I32": np.int32, "I8": np.int8, "F32": np.float32}
"""The types of arrays in a safetensors file that tokens and targets have."""


@dataclass(frozen=True)
class KeptTokens:
    """Kept tokens are those of examples, in files of a folder, or nowhere if that is None.

    ``key`` names everything that they follow from: texts, tokenizer, task and length.
    """

    folder: Path | None
    key: str

    def get(self, split: Split, make: Callable[[], Encoded]) -> Encoded:
        """Return the tokens of a split, and make them where no sound file holds them.

        One process makes them at a time, and the others wait for it. Where the folder cannot be
        used, each makes its own.
        """
        if self.folder is None:
            return make()
        name = hashlib.sha256(f"{self.key} {split}".encode()).hexdigest()[:40]
        file, made = self.folder / f"{name}{SUFFIX}", None
        with suppress(OSError), _alone(self.folder):
            if found := _read(file):
                return found
            made = make()
            write_result(file, to_arrays(made))
            made = _read(file) or made  # the file is mapped, so that processes share the memory
        return made or make()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes out of this block; the lock ends with the process that holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        with suppress(OSError):  # some file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(file: Path) -> Encoded | None:
    """Return what a file holds, as a map of it, or None where it is missing or not sound."""
    try:
        return from_arrays(_arrays(file))
    except FileNotFoundError:
        return None
    except (DamagedResultError, ValueError, KeyError, IndexError, TypeError):
        return None


def _arrays(file: Path) -> dict[str, Array]:
    """Return the arrays of a file by name, mapped into memory.

    Raises DamagedResultError where the checksum differs.
    """
    with regular_file(file) as opened:
        content = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    with memoryview(content) as view:
        if view[:CHECKSUM_BYTES] != checksum(file.stem, view[CHECKSUM_BYTES:]):
            raise DamagedResultError(f"{file} is damaged (its checksum differs)")
    # In the safetensors format, the file has the length of a header in eight bytes, the header with
    # types, shapes and offsets, and the arrays.
    begin = CHECKSUM_BYTES + 8
    begin += (length := int.from_bytes(content[CHECKSUM_BYTES:begin], "little"))
    header: dict[str, Any] = json.loads(content[begin - length : begin])
    return {
        name: np.frombuffer(
            content,
            dtype=_DTYPES[entry["dtype"]],
            count=int(np.prod(entry["shape"])),
            offset=begin + entry["data_offsets"][0],
        ).reshape(entry["shape"])
        for name, entry in header.items()
    }
