"""Imports tables of phones and their AI Benchmark scores: CSV, or one of FLASH's two JSON files.

Columns of a CSV are found by name. Scores are points, not FLOP/s, and are kept as they are. Memory
becomes bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from traces.availability import device_id
from traces.importers.flash import read_json
from traces.importers.relative_speed import with_speed
from traces.importers.result import DeviceTable, name_of
from traces.text import excerpt, number, read_bytes, read_table
from traces.units import BYTES_PER_GB

MAX_SCORE = 1e12
RANKING = {
    "CPU": "soc",
    "Year": "year",
    "RAM": "memory_bytes",
    "Android": "android",
    "CPU_Q_AI_Score": "cpu_int8_score",
    "CPU_F_AI_Score": "cpu_float_score",
    "QUANT_Score": "nn_int8_score",
    "FP16_Score": "nn_fp16_score",
    "FP32_Score": "nn_fp32_score",
    "FP_PAR_Score": "nn_parallel_score",
    "Memory": "memory_score",
    "AI_Score": "ai_score",
}
"""Our name of each column of FLASH's raw list."""
TEXTS = ("soc", "year", "android")

Fields = Mapping[str, str]
"""Fields of a device by our names; one that is not known is absent."""


def read(path: Path) -> DeviceTable:
    """Return the phones of a table; a second one of the same name becomes ``NAME #2``.

    Raises ValueError that names the file and device, what was found and what is expected.
    """
    is_json = read_bytes(path).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[")
    rows: dict[str, Fields] = {}
    num_repeats = 0
    for where, name, fields in _from_json(path) if is_json else _from_csv(path):
        if not any(column.endswith("score") for column in fields):
            raise ValueError(f"{where}: expected at least one score, found none")
        alike = [other for other in rows if other == name or other.startswith(f"{name} #")]
        if any(rows[other] == fields for other in alike):
            num_repeats += 1
        else:
            rows[f"{name} #{len(alike) + 1}" if alike else name] = fields
    if not rows:
        raise ValueError(f"{path}, line 1: expected at least one device, found none")
    columns = tuple(dict.fromkeys(column for fields in rows.values() for column in fields))
    table = tuple((name, *(row.get(c, "") for c in columns)) for name, row in rows.items())
    notes = (f"repeats of a device, left out: {num_repeats}",) if num_repeats else ()
    return with_speed(DeviceTable(name_of(path), ("device_id", *columns), table, notes))


def _from_csv(path: Path) -> Iterator[tuple[str, str, Fields]]:
    """Yield the place, name and fields of each device of a CSV with ``device`` and scores."""
    table = read_table(path)
    table.require(["device"])
    if not any(column.endswith("_score") for column in table.columns):
        raise ValueError(
            f"{table.header_where}: expected columns that end in _score, "
            f"found {excerpt(','.join(table.columns))}"
        )
    for row in table.rows:
        fields = {}
        for column, text in row.fields.items():
            if column == "memory_gb":
                fields["memory_bytes"] = _scaled(row.where, column, text, BYTES_PER_GB)
            elif column.endswith("_score"):
                fields[column] = _scaled(row.where, column, text, 1.0)
            elif column in TEXTS:
                fields[column] = text
        yield row.where, device_id(row.where, row.fields["device"]), fields


def _from_json(path: Path) -> Iterator[tuple[str, str, Fields]]:
    """Yield the place, name and fields of each device of a JSON file.

    The file holds an object of scores by name, or a list of objects with a ``Model``.
    """
    value = read_json(path)
    if isinstance(value, dict):
        for name, score in value.items():
            where = f"{path}, device {excerpt(name)}"
            text = "" if isinstance(score, dict | list | bool) else str(score)
            score = number(where, "the score", text, MAX_SCORE)
            yield where, device_id(where, name), {"ai_score": f"{score:.12g}"}
        return
    for n, entry in enumerate(value if isinstance(value, list) else [value], start=1):
        where = f"{path}, device {n}"
        if not isinstance(entry, dict) or not isinstance(entry.get("Model"), str):
            raise ValueError(f"{where}: expected an object with a Model, found another value")
        yield where, device_id(where, entry["Model"]), _ranking(where, entry)


def _ranking(where: str, entry: Mapping[str, Any]) -> Fields:
    """Return the fields of one object of the raw list, whose values are unchecked."""
    fields = {}
    for theirs, ours in RANKING.items():
        text = entry.get(theirs, "")
        if not isinstance(text, str):
            raise ValueError(f"{where}: {theirs} must be a text, found {excerpt(repr(text))}")
        if ours == "memory_bytes":
            fields[ours] = _scaled(where, theirs, text.strip().removesuffix("GB"), BYTES_PER_GB)
        elif ours in TEXTS:
            fields[ours] = text.strip()
        else:  # such as "76206 1,6": the score, then notes on how it was measured
            fields[ours] = _scaled(where, theirs, (text.split() or [""])[0], 1.0)
    return fields


def _scaled(where: str, column: str, text: str, size: float) -> str:
    """Return a number times ``size`` as text, empty if it is not known."""
    return f"{number(where, column, text, MAX_SCORE) * size:.12g}" if text else ""
