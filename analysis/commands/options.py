"""Defines the arguments, options and output that several commands share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from analysis.escape import visible
from simulator.config.problems import UserError
from simulator.log.writers import WRITERS
from simulator.workers.trainers import EXECUTORS

File = Annotated[Path, typer.Argument(help="experiment YAML", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="override a key of the YAML; paths are relative to the YAML's folder",
    ),
]
Output = Annotated[Path, typer.Option(help="folder that run folders are made in")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, help="number of training processes, one a core unless given; results do not change"
    ),
]
ExecutorOption = Annotated[
    str,
    typer.Option(
        "--executor",
        metavar="|".join(EXECUTORS),
        help="where training processes run: on this machine, or in a Ray cluster",
    ),
]

Cache = Annotated[
    Path | None,
    typer.Option(help="folder that keeps training results; your user cache folder if absent"),
]
CacheSize = Annotated[
    float,
    typer.Option(
        "--cache-gb", help="GB of results that are kept; the least recently used are removed"
    ),
]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="train everything anew, and keep no results")
]

Log = Annotated[
    list[str] | None,
    typer.Option(
        "--log",
        metavar="|".join(WRITERS),
        help="log each round to this service too; may be given several times",
    ),
]

Folders = Annotated[list[Path], typer.Argument(help="run folders, or folders that hold some")]
Target = Annotated[
    float | None,
    typer.Option(
        help="target value of the first metric, e.g. 0.55; the best that all runs reach if absent"
    ),
]
Baseline = Annotated[
    str | None, typer.Option(help="variant that others are compared with; fedlora unless given")
]

Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE,VALUE",
        help="only runs of these seeds, labels or values of a key; KEY!=VALUE leaves them out",
    ),
]


def place_beside(
    folders: Sequence[Path], name: str, given: Path | None, where: Sequence[str] = ()
) -> Path:
    """Return where a command writes: as ``given``, or below the folder or folders that it reads.

    What is made of some of the runs alone has a name that says so, and so never replaces what was
    made of all. Raises UserError where a link in a folder that somebody handed over would lead
    elsewhere.
    """
    if given is not None:
        return given
    parent = folders[0] if len(folders) == 1 else folders[0].parent
    place = parent / "-".join([name, *_some_runs(folders), *map(_as_name, where)])
    if place.is_symlink():
        raise UserError(f"{place} must be a folder of its own, not a link; give --output")
    return place


def _some_runs(folders: Sequence[Path]) -> list[str]:
    """Return words for a name where several run folders are given, and others stand beside them."""
    own = {folder.resolve() for folder in folders}
    parent = folders[0].parent
    if len(own) == 1 or any(not (one / "manifest.json").is_file() for one in own):
        return []
    beside = {file.parent.resolve() for file in parent.glob("*/manifest.json")}
    return [f"of-{len(own)}-runs"] if beside - own else []


def _as_name(entry: str) -> str:
    """Return an entry of --where as a part of a folder's name, unlike that of any other entry."""
    text = entry.replace("!=", "-not=")
    plain = re.sub(r"[^A-Za-z0-9.,=_-]", "_", text)[:60]
    return plain if plain == text else f"{plain}-{sha256(entry.encode()).hexdigest()[:6]}"


def say(console: Console, line: str) -> None:
    """Print a line as it stands, however long it is and whatever names it holds."""
    console.print(visible(line), highlight=False, soft_wrap=True, markup=False)
