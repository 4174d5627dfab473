"""The commands ``fedclock runs``: list, show and remove run folders."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from analysis import escape
from analysis.commands.options import say
from analysis.commands.voice import results
from analysis.metrics.definitions import METRICS
from analysis.units import BYTES, SECONDS
from simulator.config.problems import UserError
from simulator.log.manifest import RunFolderError, lost_files, read_manifest
from simulator.log.removal import check_removable, remove_runs

app = typer.Typer(no_args_is_help=True, help="Run folders: list, show and remove them.")

Paths = Annotated[list[Path], typer.Argument(help="run folders, or folders that hold some")]
COLUMNS = ("run", "status", "rounds", "simulated", "result", "size")
SCALES = {metric.column: metric.scale for metric in METRICS} | {"wall_s": SECONDS}
"""The unit of each number of a manifest."""
TITLES = {
    "simulated_s": "simulated time", "wall_s": "time of the host", "num_rounds": "rounds",
    "read_alone": "titles, targets and place",
}  # fmt: skip
SHOWN = (
    "experiment", "label", "strategy", "seed", "status", "error", "num_rounds", "simulated_s",
    "wall_s", "model", "data", "config_hash", "conditions_hash", "git_sha", "read_alone",
)  # fmt: skip


@app.command("list")
def list_runs(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="folders that hold runs; runs if absent")
    ] = None,
) -> None:
    """List the runs below folders, with what became of each."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in COLUMNS:
        is_number = column in ("rounds", "simulated", "result", "size")
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for folder in _found(folders or [Path("runs")]):
        table.add_row(*(escape.terminal(cell) for cell in _row(folder)))
    results().print(table)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="a run folder", show_default=False)],
) -> None:
    """Show what a run was made from, what it came to, and whether its files are whole."""
    manifest = _manifest(folder)
    console = results()
    scores = [key for key in manifest if key.startswith("final_")]
    for key in (*SHOWN, *scores):
        if manifest.get(key) not in (None, "", {}):
            say(console, f"{TITLES.get(key, key.replace('_', ' '))}: {_words(key, manifest[key])}")
    say(console, f"size: {BYTES.text(_size_bytes(folder))}")
    if manifest.get("status") == "done":
        lost = lost_files(folder, manifest)
        say(console, f"files: {'gone or changed: ' + ', '.join(lost) if lost else 'as written'}")


@app.command()
def remove(
    folders: Paths,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
) -> None:
    """Remove runs: all that are named or none, and only what a run wrote."""
    found = list(_found(folders))
    for folder in found:
        check_removable(folder)
    console = results()
    for folder in found:
        say(console, f"{folder} ({BYTES.text(_size_bytes(folder))})")
    if not yes:
        if not sys.stdin.isatty():
            raise UserError("removing must be confirmed: nobody is there to ask, so give --yes")
        typer.confirm(f"Remove {len(found)} runs?", abort=True)
    remove_runs(found)
    say(console, f"{len(found)} runs removed")


def _found(folders: Sequence[Path]) -> Iterator[Path]:
    """Yield each run folder among these, or at most two levels below them, once.

    Raises UserError where there is none.
    """
    seen: set[Path] = set()
    for folder in folders:
        patterns = ("manifest.json", "*/manifest.json", "*/*/manifest.json")
        own = sorted({file.parent for pattern in patterns for file in folder.glob(pattern)})
        if not own:
            raise UserError(f"{folder} must be a run folder or hold some, but there is none")
        for run in own:
            if run.resolve() not in seen:
                seen.add(run.resolve())
                yield run


def _row(folder: Path) -> tuple[str, ...]:
    """Return the cells of a run; of one whose manifest cannot be read, that it cannot."""
    try:
        manifest = _manifest(folder)
    except RunFolderError:
        return str(folder), "damaged", "", "", "", BYTES.text(_size_bytes(folder))
    simulated_s = _number(manifest.get("simulated_s"))
    results = [
        f"{key.removeprefix('final_').replace('_', ' ')} {_words(key, given)}"
        for key, given in manifest.items()
        if key.startswith("final_") and not math.isnan(_number(given))
    ]
    return (
        str(folder),
        str(manifest.get("status", "unknown")),
        str(manifest.get("num_rounds", "")),
        "" if math.isnan(simulated_s) else SECONDS.text(simulated_s),
        ", ".join(results),
        BYTES.text(_size_bytes(folder)),
    )


def _manifest(folder: Path) -> Mapping[str, Any]:
    manifest = read_manifest(folder)
    if not manifest:
        raise RunFolderError(f"a run folder must hold a manifest.json, got {folder}")
    return manifest


def _number(value: Any) -> float:
    """Return the number of a manifest; not a number where there is none that a double holds."""
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:  # JSON has whole numbers of any length
        return math.nan


def _words(key: str, value: Any) -> str:
    """Return an entry of a manifest as tables write it, in its unit."""
    if not math.isnan(number := _number(value)) and key in SCALES:
        return SCALES[key].text(number)
    if isinstance(value, dict):
        return str(value.get("name") or json.dumps(value, ensure_ascii=False))
    return str(value)


def _size_bytes(folder: Path) -> float:
    """Return what the files below a folder take, links not followed."""
    files = (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    return float(sum(file.stat().st_size for file in files))
