"""Files that are whole at any instant, even after a crash."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

PARTIAL = ".partial"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file in one step: a reader, even after a crash, sees the old content or the new."""
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")  # another may write the same
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_table(path: Path, table: pa.Table) -> None:
    partial = path.with_name(path.name + PARTIAL)
    pq.write_table(table, partial)
    os.replace(partial, path)
