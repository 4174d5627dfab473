"""Defines the arguments, options and output that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from analysis.escape import visible
from simulator.config.plain_yaml import parse_yaml
from simulator.config.problems import UserError
from simulator.log.writers import WRITERS
from simulator.workers.trainers import EXECUTORS

File = Annotated[Path, typer.Argument(help="experiment YAML", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a key of the YAML")
]
Output = Annotated[Path, typer.Option(help="folder that run folders are made in")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, help="training processes, one a core unless given; no result depends on it"
    ),
]
ExecutorOption = Annotated[
    str,
    typer.Option(
        "--executor",
        metavar="|".join(EXECUTORS),
        help="where they run: on this machine, or in a Ray cluster",
    ),
]

Cache = Annotated[
    Path | None,
    typer.Option(help="folder that keeps training results for later runs; your own, if absent"),
]
CacheSize = Annotated[
    float, typer.Option("--cache-gb", help="the least recently used go beyond this many GB")
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="train all, and keep nothing for later")]

Log = Annotated[
    list[str] | None,
    typer.Option(
        "--log",
        metavar="|".join(WRITERS),
        help="write each round there too; may be given several times",
    ),
]

Folders = Annotated[list[Path], typer.Argument(help="run folders, or folders that hold some")]
Target = Annotated[
    float | None,
    typer.Option(
        help="value of the first metric to time runs to, as 0.55; the best that all reach if absent"
    ),
]
Baseline = Annotated[
    str | None, typer.Option(help="variant that speed-ups are over; fedlora unless given")
]

Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE,VALUE", help="only runs of these seeds, labels or values of a config key"
    ),
]


def wanted(entries: Sequence[str]) -> dict[str, object]:
    """Return the values that ``key=value,value`` entries ask for. Raises UserError on others."""
    found: dict[str, object] = {}
    for entry in entries:
        key, equals, text = entry.partition("=")
        try:
            is_plain = not text.strip().startswith(("[", "{", '"', "'"))
            texts = text.split(",") if is_plain else [text]
            values = [parse_yaml(one) for one in texts]
        except ValueError:
            equals = ""
        if not key or not equals:
            raise UserError(f"--where must read key=value, got {entry!r}")
        found[key] = tuple(values) if len(values) > 1 else values[0]
    return found


def place_beside(folders: Sequence[Path], name: str, given: Path | None) -> Path:
    """Return where a command writes: as ``given``, or below the folder or folders that it reads.

    Raises UserError where a link in a folder that somebody handed over would lead elsewhere.
    """
    if given is not None:
        return given
    place = (folders[0] if len(folders) == 1 else folders[0].parent) / name
    if place.is_symlink():
        raise UserError(f"{place} must be a folder of its own, not a link; give --output")
    return place


def say(console: Console, line: str) -> None:
    """Print a line as it stands, however long it is and whatever names it holds."""
    console.print(visible(line), highlight=False, soft_wrap=True, markup=False)
