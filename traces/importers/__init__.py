"""Every format that a trace can be imported from: one entry each, one module a family.

An importer takes files and returns what they hold in our own units, or raises ValueError that says
file, line, what was found and what is expected. It writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    stunner,
)
from traces.importers.result import Availability, DeviceTable, Imported, Recording
from traces.importers.sniffing import sniff

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
    """One format: what it is, what an import gives, and how files of it are read."""

    title: str
    gives: Literal["link", "availability", "devices", "link or availability"]
    read: Read
    looks: str = ""  # the name that ``sniff`` gives it, where that is not its own


def each(read_one: Callable[[Path], Imported | Sequence[Imported]]) -> Read:
    """The importer of files that stand for themselves."""

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
        "ghent": Format("Ghent 4G logs (report_*.log)", "link", each(bytelog.read_ghent)),
        "hsdpa": Format("Norway HSDPA raw logs", "link", each(bytelog.read_hsdpa)),
        "ucc": Format("UCC 4G and 5G logs of G-NetTrack Pro", "link", each(gnettrack.read)),
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


def import_files(
    name: str, paths: Sequence[Path], *, formats: Mapping[str, Format] = FORMATS
) -> list[Imported]:
    """What files of the named format hold, each under a name of its own.

    Raises ValueError for an unknown format, for a file that is wrong (and says which format it
    looks like, if another), and where two results would have one name.
    """
    if name not in formats:
        raise ValueError(f"the format must be one of {', '.join(formats)}, got {name!r}")
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
    return imported


def _hint(name: str, paths: Sequence[Path], error: str, formats: Mapping[str, Format]) -> str:
    """Which other format the file that an error names looks like."""
    wrong = max(
        (path for path in paths if str(path) in error), key=lambda p: len(str(p)), default=None
    )
    looks = sniff(wrong) if wrong else None
    if looks in (None, name, formats[name].looks):
        return ""
    return f". The file looks like the format {looks}"
