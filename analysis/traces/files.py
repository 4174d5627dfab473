"""Loads trace files of any kind by path or name, and imports Parquet as one more format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from traces import catalog, formats
from traces.availability import AvailabilityTrace, availability_of
from traces.generators.link_model import LinkModel
from traces.generators.model_file import read_model
from traces.importers import FORMATS, Availability, Format, Imported, Recording, each
from traces.importers.own import from_table
from traces.importers.result import DeviceTable
from traces.signals import BATTERY_LEVEL, FREE_MEMORY, LATENCY, SPEED
from traces.text import MAX_BYTES, Row, Table, did_you_mean, excerpt, read_table

STEP_COLUMNS = tuple(one.column for one in (LATENCY, SPEED, FREE_MEMORY, BATTERY_LEVEL))
NUM_DRAWN = 4
"""Links that are drawn where a table or figure shows a generator."""
MAX_TEXT = 1000
"""Longest text in a Parquet file; a short file may repeat a long one many times."""
MAX_CELLS = 10_000_000
"""Most rows times columns of a Parquet file; as Python objects they take some gigabytes."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """The loaded files hold links, availability and device tables, by their labels.

    The uplink of a link is None if it was not measured.
    """

    links: dict[str, Recording]
    availability: dict[str, Mapping[str, AvailabilityTrace]]
    tables: dict[str, DeviceTable]

    @property
    def labels(self) -> set[str]:
        """Return every label that is taken."""
        return {*self.links, *self.availability, *self.tables}


def load(names: Sequence[str], *, seed: int = 0) -> Loaded:
    """Return bundled links and pools by name, and the content of files and folders by path.

    The TOML file of a fitted generator stands for what it draws with ``seed``. Raises ValueError
    that lists the valid names, or says what is wrong in which file.
    """
    found = Loaded({}, {}, {})
    for name in names:
        if name in catalog.pools() or name in catalog.links():
            for link in catalog.pool(name):
                found.links[link.name] = Recording(link.name, link.downlink, link.uplink)
            continue
        for path in _files(name):
            label = path.stem if path.stem not in found.labels else str(path)
            if path.suffix == ".toml":
                _add_model(found, label, path, seed)
            else:
                _add_table(found, label, path)
    return found


def _add_model(found: Loaded, label: str, path: Path, seed: int) -> None:
    model = read_model(path, uplink_scale=1.0)
    if isinstance(model, LinkModel):
        found.links.update(_drawn(model, label, seed))
    else:
        found.availability[label] = catalog.drawn_devices(model, catalog.NUM_DEVICES, seed=seed)


def _add_table(found: Loaded, label: str, path: Path) -> None:
    table = read_table(path)
    if table.columns == formats.COLUMNS:
        found.links[label] = _link(path)
    elif "start_s" in table.columns:
        found.availability[label] = availability_of(table)
    elif "device_id" in table.columns:
        rows = tuple(tuple(row.fields.values()) for row in table.rows)
        found.tables[label] = DeviceTable(label, table.columns, rows)
    elif table.columns[-1] in STEP_COLUMNS:
        raise ValueError(
            f"{table.header_where}: expected links, availability or devices, found a trace "
            f"of {table.columns[-1]}, which a run replays (docs/conditions.md) and which "
            f"has no table or figure here"
        )
    else:
        raise ValueError(
            f"{table.header_where}: expected {','.join(formats.COLUMNS)}, or device_id "
            f"with other columns, found {excerpt(','.join(table.columns))}; a file of another "
            f"format must be imported first (fedclock traces import)"
        )


def with_uplinks(imported: Sequence[Imported], scale: float) -> list[Imported]:
    """Return the imports with ``scale`` times the downlink for each unmeasured uplink."""
    return [one.with_uplink(scale) if isinstance(one, Recording) else one for one in imported]


def read_parquet(path: Path) -> Recording | Availability:
    """Return the link or the availability in a Parquet file, whose columns are as those of a CSV.

    The size of the table is checked before its content is read, since a file of some kilobytes may
    hold millions of rows. Raises ValueError that names the file, the row, what was found and what
    is expected.
    """
    try:
        columns = _parquet_columns(path)
    except _RefusedError as error:
        raise ValueError(f"{path}: {error}") from None
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        words = (str(error).splitlines() or ["no reason given"])[0][:100]
        raise ValueError(f"{path}: expected a Parquet file, found damage ({words})") from None
    values = zip(*columns.values(), strict=True)
    rows = [
        Row(f"{path}, row {n}", {name: _text(v) for name, v in zip(columns, row, strict=True)})
        for n, row in enumerate(values, start=1)
    ]
    return from_table(path, Table(str(path), tuple(columns), tuple(rows)))


IMPORTS: Mapping[str, Format] = MappingProxyType(
    {
        **FORMATS,
        "parquet": Format("as csv, in Parquet", "link or availability", each(read_parquet)),
    }
)
"""Every format that ``fedclock traces import`` reads."""


class _RefusedError(Exception):
    """This error says why a Parquet file that is not damaged must not be read."""


def _parquet_columns(path: Path) -> Mapping[str, Sequence[object]]:
    """Return the columns of a Parquet file. Raises _RefusedError for one that is too large."""
    if not path.is_file():
        raise _RefusedError("expected a regular file, found another thing or nothing")
    with pq.ParquetFile(path) as file:
        size, schema = file.metadata, file.schema_arrow
        num_bytes = sum(size.row_group(k).total_byte_size for k in range(size.num_row_groups))
    if size.num_rows * size.num_columns > MAX_CELLS or num_bytes > MAX_BYTES:
        raise _RefusedError(
            f"expected at most {MAX_CELLS:,} rows times columns and {MAX_BYTES:,} bytes unpacked, "
            f"found {size.num_rows:,} rows of {size.num_columns:,} columns and {num_bytes:,} "
            f"bytes; split the file"
        )
    if nested := [field.name for field in schema if pa.types.is_nested(field.type)]:
        raise _RefusedError(
            f"expected columns of numbers and texts, found lists or records in "
            f"{excerpt(', '.join(nested))}"
        )
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    texts += [field.name for field in schema if pa.types.is_large_string(field.type)]
    table = pq.read_table(path, read_dictionary=texts)
    for name in texts:
        for chunk in table.column(name).chunks:
            longest = pc.max(pc.utf8_length(chunk.dictionary)).as_py() or 0
            if longest > MAX_TEXT:
                raise _RefusedError(
                    f"expected texts of at most {MAX_TEXT} characters, found {longest} in "
                    f"{excerpt(name)}"
                )
    columns: Mapping[str, Sequence[object]] = table.to_pydict()
    return columns


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _link(path: Path) -> Recording:
    """Return the link in a CSV file; an uplink that was not measured stays None."""
    link = formats.read_link(path, uplink_scale=1.0)
    is_measured = any(row.fields["uplink_mbps"] for row in read_table(path).rows)
    return Recording(link.name, link.downlink, link.uplink if is_measured else None)


def _drawn(model: LinkModel, label: str, seed: int) -> dict[str, Recording]:
    """Return some links of a generator; an uplink that was not measured stays None."""
    return {
        f"{label}-{k}": Recording(
            f"{label}-{k}", link.downlink, link.uplink if model.uplink else None
        )
        for k, link in enumerate(catalog.drawn_links(model, NUM_DRAWN, seed=seed), start=1)
    }


def _files(name: str) -> list[Path]:
    path = Path(name)
    if path.is_file():
        return [path]
    files = sorted(path.glob("*.csv")) if path.is_dir() else []
    if not files:
        raise ValueError(
            f"a trace must be a CSV or TOML file, a folder of them, or one of "
            f"{', '.join(catalog.pools())}, got {name!r}{did_you_mean(name, catalog.pools())}"
        )
    return files
