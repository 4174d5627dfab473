"""Reads examples from tables of Arrow, as they lie in a Parquet file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from devices.datasets.records import MISSING, Gathering

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE = 1024
"""Rows that are made Python texts at a time."""

T = TypeVar("T")


def read_parquet(content: bytes, gathering: Gathering) -> None:
    """Gather the records of a Parquet file.

    Raises ValueError where it is damaged, lacks a column, or holds more than memory would: by what
    it says of itself before anything is decoded, and by what is decoded.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = list(gathering.names)
    try:
        schema = pq.read_schema(pa.BufferReader(content))
        # Texts are read as indices into a dictionary, so that repeated ones are stored once.
        texts = [each.name for each in schema if each.name in wanted and _is_text(each.type)]
        file = pq.ParquetFile(pa.BufferReader(content), read_dictionary=texts)
        size = _unpacked_bytes(file.metadata, wanted)
    except damages() as error:
        raise gathering.damaged(error) from None
    gathering.meet_table(1, schema.names)
    gathering.check_rows(file.metadata.num_rows)
    gathering.check_size(size)
    groups = (file.read_row_group(k, columns=wanted) for k in range(file.num_row_groups))
    for group in in_words(groups, gathering):
        add_batches(group.to_batches(ROWS_AT_ONCE), gathering)


def add_batches(batches: Iterable[pa.RecordBatch], gathering: Gathering) -> None:
    """Gather the records of tables, whose rows are counted on from those before."""
    for batch in batches:
        columns = [_values(batch.column(name)) for name in gathering.names]
        start = gathering.num_records + 1
        for row, values in enumerate(zip(*columns, strict=True), start=start):
            gathering.add(row, values)


def in_words(tables: Iterator[T], gathering: Gathering) -> Iterator[T]:
    """Yield the tables; what is raised while they are decoded becomes a ValueError in words."""
    while True:
        try:
            table: Any = next(tables)
            table.validate(full=True)
        except StopIteration:
            return
        except damages() as error:
            raise gathering.damaged(error) from None
        yield table


def damages() -> tuple[type[Exception], ...]:
    """Return what pyarrow raises for files that are not what they should be."""
    import pyarrow as pa

    return (pa.ArrowException, OSError, ValueError, LookupError, OverflowError, MemoryError)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _unpacked_bytes(metadata: Any, names: Sequence[str]) -> int:
    """Return the bytes of these columns when they are unpacked, as the file says."""
    groups = (metadata.row_group(k) for k in range(metadata.num_row_groups))
    parts = (group.column(k) for group in groups for k in range(group.num_columns))
    return sum(
        part.total_uncompressed_size
        for part in parts
        if part.path_in_schema in names or part.path_in_schema.partition(".")[0] in names
    )


def _values(column: Any) -> list[object]:
    """Return the values of a column, those that are null as ``MISSING``; equal texts are one."""
    if hasattr(column, "dictionary"):
        # The dictionary covers the whole file, and these rows may use a small part of it.
        used = column.indices.unique()
        texts = column.dictionary.take(used).to_pylist()
        known = dict(zip(used.to_pylist(), texts, strict=True))
        found = [known[place] for place in column.indices.to_pylist()]
    else:
        found = column.to_pylist()
    return [MISSING if value is None else value for value in found]
