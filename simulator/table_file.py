"""Tables and event lines as they stand in a run folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from simulator.records import Columns
from simulator.wave import PHASES, Wave

TYPES = {"int": pa.int64(), "float": pa.float64()}


class TableFile:
    """A Parquet file of records of one kind, written by pieces, and there once it is whole."""

    def __init__(self, path: Path, kind: type) -> None:
        self._path = path
        types = {f.name: TYPES.get(str(f.type), pa.string()) for f in fields(kind)}
        self._schema = pa.schema(list(types.items()))
        self._writer = pq.ParquetWriter(self._partial, self._schema)

    @property
    def _partial(self) -> Path:
        return self._path.with_name(self._path.name + ".partial")

    def write(self, columns: Columns) -> None:
        """Add rows, which are given as columns."""
        arrays = [pa.array(columns[one.name], one.type, from_pandas=False) for one in self._schema]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))

    def close(self) -> None:
        """Give the file its name."""
        self._writer.close()
        os.replace(self._partial, self._path)


def write_columns(path: Path, kind: type, columns: Columns) -> None:
    """Write a file whose rows are all there."""
    file = TableFile(path, kind)
    file.write(columns)
    file.close()


def wave_lines(wave: Wave) -> Iterator[str]:
    """The lines of events.jsonl that its events would have, one by one."""
    heads = [f', "event": "{name}", "round": {wave.round}, "device": ' for name in PHASES]
    tails = [
        [f", {json.dumps(name)}: {json.dumps(value)}}}\n" for name, value in wave.amounts(phase)]
        for phase in range(len(PHASES))
    ]
    devices, works = wave.devices.tolist(), wave.work_index.tolist()
    start = f'{{"at_s": {json.dumps(wave.started_s)}{heads[0]}'
    for device, work in zip(devices, works, strict=True):
        yield f"{start}{device}{tails[0][work]}"
    for at_s, phase, row in zip(*(column.tolist() for column in wave.happenings), strict=True):
        yield f'{{"at_s": {at_s!r}{heads[phase]}{devices[row]}{tails[phase][works[row]]}'
