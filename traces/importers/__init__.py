"""Lists every format that traces can be imported from: one entry for each, one module a family.

The contract of an importer. It gets the paths of files that the user says are of its format, and
returns what they hold as ``Recording``, ``Availability`` or ``DeviceTable``, each under a name that
becomes the name of a CSV file. Files that stand for themselves give their results in the order of
the paths. Units are SI and 1 Mbit/s is 1e6 bit/s; numbers are read by ``traces.text``. Whatever was
left out or assumed is a sentence in ``notes``, which the user reads. An importer writes nothing,
and never runs anything that a file holds. Where a file is wrong it raises ValueError that names the
file, the line (or client, device, row or byte), what was found and what is expected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

from traces.importers import (
    bytelog,
    cooked,
    device_tables,
    fedscale,
    flash,
    gnettrack,
    mahimahi,
    own,
    rates,
    stunner,
)
from traces.importers.plausible import unlikely_units
from traces.importers.result import Availability, DeviceTable, Imported, Recording
from traces.importers.sniffing import sniff
from traces.text import unknown

__all__ = [
    "FORMATS",
    "Availability",
    "DeviceTable",
    "Format",
    "Imported",
    "Recording",
    "each",
    "import_files",
    "sniff",
]

Read = Callable[[Sequence[Path]], Sequence[Imported]]


class Format(NamedTuple):
    """A format says what its files are, what an import gives, and how the files are read."""

    title: str
    gives: Literal["link", "availability", "devices", "link or availability"]
    read: Read
    looks: str = ""  # the name that ``sniff`` gives these files, if it is not the format's own


def each(read_one: Callable[[Path], Imported | Sequence[Imported]]) -> Read:
    """Return the importer that reads each file by itself with ``read_one``."""

    def read(paths: Sequence[Path]) -> Sequence[Imported]:
        imported: list[Imported] = []
        for path in paths:
            result = read_one(path)
            imported += result if isinstance(result, list) else [result]  # type: ignore[list-item]
        return imported

    return read


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "mahimahi": Format("mahimahi packet schedules, .down and .up", "link", mahimahi.read),
        "pensieve": Format("Pensieve's cooked traces, Mbit/s", "link", each(cooked.read_megabits)),
        "lumos5g": Format(
            "Lumos5G traces cooked alike, Mbit/s", "link", each(cooked.read_megabits), "pensieve"
        ),
        "puffer": Format(
            "Puffer traces cooked alike, MB/s", "link", each(cooked.read_megabytes), "pensieve"
        ),
        "rates": Format("rates with their units (NYU-METS, iperf)", "link", each(rates.read)),
        "ghent": Format("Ghent 4G logs (report_*.log)", "link", each(bytelog.read_ghent)),
        "hsdpa": Format("Norway HSDPA raw logs", "link", each(bytelog.read_hsdpa)),
        "ucc": Format("G-NetTrack logs, also UCC 4G and 5G", "link", each(gnettrack.read)),
        "csv": Format("our own columns, by name", "link or availability", each(own.read_csv)),
        "fedscale-capacity": Format(
            "FedScale client_device_capacity", "devices", each(fedscale.read_capacity)
        ),
        "fedscale-behave": Format(
            "FedScale client_behave_trace", "availability", each(fedscale.read_behave)
        ),
        "flash": Format("FLASH state traces, JSON", "availability", each(flash.read)),
        "stunner": Format(
            "STUNNER session lists (peersim_session_*.txt)", "availability", each(stunner.read)
        ),
        "ai-benchmark": Format(
            "AI Benchmark tables: CSV, or FLASH's JSON", "devices", each(device_tables.read)
        ),
    }
)
"""Every format by the name that ``fedclock traces import`` takes, but for Parquet."""


def import_files(
    name: str, paths: Sequence[Path], *, formats: Mapping[str, Format] = FORMATS
) -> list[Imported]:
    """Return what files of the named format hold, each under a name of its own.

    Raises ValueError for an unknown format, for a file that is wrong (and then says which other
    format it looks like, if any), and where two results would have one name.
    """
    if name not in formats:
        raise ValueError(unknown("the format", name, formats))
    try:
        imported = list(formats[name].read(paths))
    except ValueError as error:
        raise ValueError(f"{error}{_hint(name, paths, str(error), formats)}") from None
    names = [result.name for result in imported]
    twice = sorted({one for one in names if names.count(one) > 1})
    if twice:
        raise ValueError(
            f"each file must give a name of its own, got {', '.join(twice)} more than once; "
            f"import them into different folders"
        )
    return [_with_doubts(one) for one in imported]


def _with_doubts(one: Imported) -> Imported:
    """Return the result with a note for each direction whose units are unlikely."""
    if isinstance(one, Recording):
        return replace(one, notes=one.notes + unlikely_units(one))
    return one


def _hint(name: str, paths: Sequence[Path], error: str, formats: Mapping[str, Format]) -> str:
    """Return which other format the file that an error names looks like, empty if none."""
    wrong = max(
        (path for path in paths if str(path) in error), key=lambda p: len(str(p)), default=None
    )
    looks = sniff(wrong) if wrong else None
    if looks in (None, name, formats[name].looks):
        return ""
    return f". The file looks like the format {looks}"
