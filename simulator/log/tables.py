"""Writes tables and event lines as they stand in a run folder."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from devices.tasks.task import Metric
from simulator.log.block import Piece
from simulator.log.cohort_timeline import PHASES, CohortEvents, CohortTimeline
from simulator.log.records import Columns, Event

TYPES = {"int": pa.int64(), "float": pa.float64()}
_ENCODER = json.JSONEncoder(allow_nan=False)
DTYPES = {pa.int64(): np.int64, pa.float64(): np.float64}


class TableFile:
    """A table file is a Parquet file written by pieces, which has its name once it is whole.

    ``metrics`` are those of the task, where the records have any: each is a column.
    """

    def __init__(self, path: Path, kind: type, metrics: Sequence[Metric] = ()) -> None:
        self._path = path
        types: dict[str, pa.DataType] = {}
        for f in fields(kind):
            if f.name == "metrics":
                types |= {metric.name: pa.float64() for metric in metrics}
            else:
                types[f.name] = TYPES.get(str(f.type), pa.string())
        self._schema = pa.schema(list(types.items()))
        self._writer = pq.ParquetWriter(self._partial, self._schema)

    @property
    def _partial(self) -> Path:
        return self._path.with_name(self._path.name + ".partial")

    def write(self, columns: Columns) -> None:
        """Add rows, which are given as columns."""
        arrays = [column(columns[one.name], one.type) for one in self._schema]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))

    def close(self) -> None:
        """Give the file its name."""
        self._writer.close()
        os.replace(self._partial, self._path)

    def abandon(self) -> None:
        """End without a whole file; a full disk may not even let it be closed."""
        with suppress(OSError):
            self._writer.close()


def write_columns(path: Path, kind: type, columns: Columns, metrics: Sequence[Metric] = ()) -> None:
    """Write a file whose rows are all there."""
    file = TableFile(path, kind, metrics)
    file.write(columns)
    file.close()


def column(values: Sequence[Any] | npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Return one column. ``pa.array`` would import pandas, which takes longer than a short run."""
    if kind == pa.string():
        texts = [text.encode() for text in values]
        ends = np.cumsum([0, *map(len, texts)], dtype=np.int32)
        parts = (pa.py_buffer(ends), pa.py_buffer(b"".join(texts)))
        return pa.StringArray.from_buffers(len(texts), *parts)
    numbers = np.array(values, dtype=None if len(values) else DTYPES[kind])
    safe = np.ascontiguousarray(numbers.astype(DTYPES[kind], casting="safe", copy=False))
    return pa.Array.from_buffers(kind, len(safe), [None, pa.py_buffer(safe)])


def event_line(event: Event, known: dict[int, str] | None = None) -> str:
    """Return the line of events.jsonl for one event.

    ``known`` keeps what was written of details, by their identity: many events share theirs.

    What JSON calls a number is written here, because a call of ``json.dumps`` for each event would
    take longer than the simulation; the text is the same. Raises ValueError for an instant that is
    not finite.
    """
    at_s, name, number, device, details = event
    if not math.isfinite(at_s):
        raise ValueError(f"an event must happen at a finite instant, got {at_s!r} s")
    if isinstance(at_s, float):
        at_s = float(at_s)  # the repr of a NumPy float names its type
    told = known.get(id(details)) if known is not None else None
    if told is None:
        told = ""
        for key, value in details.items():
            told += f', "{key}": {value if type(value) is int else _json(value)}'
        if known is not None:
            known[id(details)] = told
    shown = "null" if device is None else device
    return f'{{"at_s": {at_s!r}, "event": "{name}", "round": {number}, "device": {shown}{told}}}\n'


def _json(value: Any) -> str:
    """Return a detail of an event as JSON, where a number that was not measured is null."""
    if isinstance(value, float):
        return repr(float(value)) if math.isfinite(value) else "null"
    if type(value) is int or (type(value) is list and set(map(type, value)) <= {int}):
        return repr(value)
    return _ENCODER.encode(value)


def block_lines(pieces: Sequence[Piece]) -> Iterator[str]:
    """Return the lines of a log of events."""
    known: dict[int, str] = {}  # the ids stay valid, since the pieces keep all details alive
    for piece in pieces:
        if isinstance(piece, Event):
            yield event_line(piece, known)
        else:
            yield from _cohort_lines(piece)


def _cohort_lines(events: CohortEvents) -> Iterator[str]:
    """Return the lines that ``event_line`` would give one by one."""
    own, passed = _timeline_lines(events.timeline), 0
    for place, event in events.others:
        yield from islice(own, place - passed)
        passed = place
        yield event_line(event)
    yield from own


def _timeline_lines(timeline: CohortTimeline) -> Iterator[str]:
    middles = [f', "event": "{name}", "round": {timeline.round}, "device": ' for name in PHASES]
    ends = [
        [f', "{name}": {_json(value)}}}\n' for name, value in timeline.told(phase)]
        for phase in range(len(PHASES))
    ]
    devices, works = timeline.devices.tolist(), timeline.work_index.tolist()
    columns = (column.tolist() for column in timeline.happenings)
    started_s = timeline.started_s  # SimPy's clock begins with the integer 0, which is written "0"
    for at_s, phase, row in zip(*columns, strict=True):
        shown = at_s if phase else started_s
        yield f'{{"at_s": {shown!r}{middles[phase]}{devices[row]}{ends[phase][works[row]]}'
    for row in timeline.late_rows.tolist():
        yield event_line(Event(timeline.cut_s, "late", timeline.round, devices[row]))
