"""Defines the commands ``fedclock runs``, which list, show and remove run folders."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from analysis import escape
from analysis.commands.options import say
from analysis.commands.voice import results
from analysis.metrics.definitions import METRICS
from analysis.units import BYTES, PLAIN, SECONDS
from simulator.config.problems import UserError
from simulator.log.manifest import RunFolderError, lost_files, read_manifest
from simulator.log.removal import check_removable, remove_runs
from simulator.log.run_folder import is_being_written
from traces.text import counted, finite_or_nan

app = typer.Typer(no_args_is_help=True, help="Run folders: list, show and remove them.")

Paths = Annotated[list[Path], typer.Argument(help="run folders, or folders that hold some")]
COLUMNS = ("run", "status", "rounds", "simulated", "result", "size")
LOOK: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "show_edge": False}
VERSIONS = ("fedclock", "python", "torch", "transformers", "peft")
SCALES = {metric.column: metric.scale for metric in METRICS}
"""The scale of each number of a manifest, which holds its units."""


@app.command("list")
def list_runs(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="folders that hold runs; runs if absent")
    ] = None,
) -> None:
    """List the runs below folders, with what became of each."""
    console = results()
    for parent, runs in groupby(_found(folders or [Path("runs")]), key=lambda run: run.parent):
        table = Table(title=escape.terminal(str(parent)), title_justify="left", **LOOK)
        for column in COLUMNS:
            is_number = column in ("rounds", "simulated", "size")
            justify: Any = "right" if is_number else "left"
            table.add_column(column, justify=justify, no_wrap=is_number, overflow="fold")
        for folder in runs:
            table.add_row(*(escape.terminal(cell) for cell in _row(folder)))
        console.print(table)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="a run folder", show_default=False)],
    as_json: Annotated[
        bool, typer.Option("--json", help="print all that the manifest holds, as JSON")
    ] = False,
) -> None:
    """Show what a run was made from, what it came to, and whether its files are whole."""
    manifest = _manifest(folder)
    if as_json:
        print(json.dumps(manifest, indent=2, ensure_ascii=False))
        return
    table = Table(show_header=False, **LOOK)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for title, words in _facts(folder, manifest).items():
        if words:
            table.add_row(title, escape.terminal(words))
    results().print(table)


def _facts(folder: Path, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return what a person asks of a run, by title; empty where its manifest does not say it."""
    alone, versions = _inner(manifest, "read_alone"), _inner(manifest, "versions")
    made_by = [f"{name} {versions[name]}" for name in VERSIONS if name in versions]
    commit = str(manifest.get("git_sha") or "")[:12]
    is_changed = " with changes" if manifest.get("git_dirty") else ""
    lost = lost_files(folder, manifest) if manifest.get("status") == "done" else []
    facts = {
        "run": f"{manifest.get('label')} of {manifest.get('experiment')}, seed "
        f"{manifest.get('seed')}",
        "title": str(alone.get("strategy_title") or alone.get("title") or ""),
        "status": _status(folder, manifest),
        "error": str(manifest.get("error") or ""),
        "rounds": str(manifest.get("num_rounds", "")),
        "simulated": _seconds(manifest.get("simulated_s")),
        "on this machine": _seconds(manifest.get("wall_s")),
        "result": ", ".join(_scores(manifest)),
        "strategy": str(manifest.get("strategy", "")),
        "model": str(_inner(manifest, "model").get("name", "")),
        "data": str(_inner(manifest, "data").get("name", "")),
        "made by": ", ".join([*made_by, *([f"commit {commit}{is_changed}"] if commit else [])]),
        "command": str(manifest.get("command") or ""),
        "size": BYTES.text(_size_bytes(folder)),
        "files": f"gone or changed: {', '.join(lost)}" if lost else "as written",
    }
    return facts if manifest.get("status") == "done" else facts | {"files": ""}


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
        typer.confirm(f"Remove {counted(len(found), 'run')}?", abort=True)
    remove_runs(found)
    say(console, f"{counted(len(found), 'run')} removed")


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
        return folder.name, "damaged", "", "", "", BYTES.text(_size_bytes(folder))
    return (
        folder.name,
        _status(folder, manifest),
        str(manifest.get("num_rounds", "")),
        _seconds(manifest.get("simulated_s")),
        ", ".join(_scores(manifest)[:1]),
        BYTES.text(_size_bytes(folder)),
    )


def _status(folder: Path, manifest: Mapping[str, Any]) -> str:
    """Return what became of a run; ``interrupted`` where it should run but no process writes it."""
    status = str(manifest.get("status", "unknown"))
    return "interrupted" if status == "running" and not is_being_written(folder) else status


def _scores(manifest: Mapping[str, Any]) -> list[str]:
    """Return the last scores of a run, the one that it is judged by first."""
    return [
        f"{key.removeprefix('final_').replace('_', ' ')} {_words(key, given)}"
        for key, given in manifest.items()
        if key.startswith("final_") and not math.isnan(finite_or_nan(given))
    ]


def _manifest(folder: Path) -> Mapping[str, Any]:
    if manifest := read_manifest(folder):
        return manifest
    if any(folder.glob("*/manifest.json")) or any(folder.glob("*/*/manifest.json")):
        advice = f"it holds runs, which `fedclock runs list {folder}` lists"
    else:
        advice = "`fedclock runs list` lists those below runs/"
    raise RunFolderError(f"a run folder must hold a manifest.json, got {folder}; {advice}")


def _inner(manifest: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return an object of a manifest; empty where it has none, or something else."""
    value = manifest.get(key)
    return value if isinstance(value, dict) else {}


def _seconds(value: Any) -> str:
    number = finite_or_nan(value)
    return "" if math.isnan(number) else SECONDS.text(number)


def _words(key: str, value: Any) -> str:
    """Return a number of a manifest as tables write it, in its unit."""
    return SCALES.get(key, PLAIN).text(finite_or_nan(value))


def _size_bytes(folder: Path) -> float:
    """Return what the files below a folder take, links not followed."""
    files = (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    return float(sum(file.stat().st_size for file in files))
