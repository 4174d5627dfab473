"""Trace files of any kind by path or name: what they hold, and Parquet as one more format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pyarrow.parquet as pq

from traces import catalog, formats
from traces.availability import AvailabilityTrace, availability_of
from traces.bandwidth import Link
from traces.generators.link_model import LinkModel
from traces.generators.model_file import read_model
from traces.importers import FORMATS, Availability, Format, Imported, Recording, each
from traces.importers.own import from_table
from traces.importers.result import DeviceTable
from traces.signals import BATTERY_LEVEL, FREE_MEMORY, LATENCY, SPEED
from traces.text import Row, Table, excerpt, read_table

STEP_COLUMNS = tuple(one.column for one in (LATENCY, SPEED, FREE_MEMORY, BATTERY_LEVEL))
NUM_DRAWN = 4  # links that stand for a generator in a table or figure


@dataclass(frozen=True, eq=False)
class Loaded:
    """Everything that was named, by what it is. A link's uplink is None if it was not measured."""

    links: dict[str, Recording]
    availability: dict[str, Mapping[str, AvailabilityTrace]]
    tables: dict[str, DeviceTable]

    @property
    def labels(self) -> set[str]:
        """Every name that is taken."""
        return {*self.links, *self.availability, *self.tables}


def load(names: Sequence[str], *, seed: int = 0) -> Loaded:
    """Bundled links and pools by name, files and folders of CSV by path.

    A TOML file of ``fedclock traces fit`` stands for what it draws with ``seed``.

    Raises ValueError that lists the valid names, or says what is wrong in which file.
    """
    found = Loaded({}, {}, {})
    for name in names:
        if name in catalog.pools() or name in catalog.links():
            found.links.update({link.name: _recording(link) for link in catalog.pool(name)})
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
    """Links whose uplink was not measured get ``scale`` times their downlink."""
    return [one.with_uplink(scale) if isinstance(one, Recording) else one for one in imported]


def read_parquet(path: Path) -> Recording | Availability:
    """The link or availability in a Parquet file. Raises ValueError: file, row, found, expected."""
    try:
        columns = pq.read_table(path).to_pydict()
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


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _recording(link: Link) -> Recording:
    return Recording(link.name, link.downlink, link.uplink)


def _link(path: Path) -> Recording:
    """A link file of ours; an uplink that was not measured stays None."""
    link = formats.read_link(path, uplink_scale=1.0)
    is_measured = any(row.fields["uplink_mbps"] for row in read_table(path).rows)
    return Recording(link.name, link.downlink, link.uplink if is_measured else None)


def _drawn(model: LinkModel, label: str, seed: int) -> dict[str, Recording]:
    """A few links of a generator; an uplink that was not measured stays None."""
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
            f"{', '.join(catalog.pools())}, got {name!r}"
        )
    return files
