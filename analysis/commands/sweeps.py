"""Defines ``fedclock sweep`` and ``fedclock summary``: runs of many seeds, and their table."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from analysis.commands.options import (
    Baseline,
    Cache,
    CacheSize,
    ExecutorOption,
    File,
    Folders,
    Log,
    NoCache,
    Output,
    Overrides,
    Target,
    Where,
    place_beside,
    say,
)
from analysis.commands.voice import chatter, results
from analysis.metrics.definitions import SMOOTHING
from simulator.config.origin import told
from simulator.config.problems import UserError
from simulator.log.disk import writing_into
from simulator.log.progress_state import duration
from simulator.log.run_folder import refresh
from simulator.log.writers import find_writers
from simulator.runs.sweep import Checked, SweepRun, expand, part_of, same_conditions, savings_of
from simulator.runs.sweep_jobs import Failure, Resources, outcomes
from simulator.workers.pool import Pool
from simulator.workers.result_cache import DEFAULT_GB, open_cache
from traces.text import counted

BUSY_S = 2.0
"""The seconds after which a run that another process works on is tried again."""

Smooth = Annotated[
    int, typer.Option(min=1, help="number of evaluations whose mean must reach the target")
]


def sweep(
    file: File,
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE,VALUE", help="key to vary, with its values"),
    ] = None,
    seeds: Annotated[str, typer.Option(help="number of seeds, or a list such as 0,3,7")] = "5",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="number of runs at once; one a core unless given")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="number of training processes of each run")
    ] = None,
    executor: ExecutorOption = "processes",
    part: Annotated[
        str | None,
        typer.Option(metavar="K/N", help="do only part K of N equal parts, for a batch system"),
    ] = None,
    overrides: Overrides = None,
    output: Output = Path("runs"),
    log: Log = None,
    cache: Cache = None,
    cache_gb: CacheSize = DEFAULT_GB,
    no_cache: NoCache = False,
) -> None:
    """Run an experiment at several seeds and grid points: what is missing, several at once."""
    find_writers(log or ())  # raises for an unknown name before any run starts
    runs = expand(file, overrides or (), grid=grid or (), seeds=seeds, output=output)
    runs = part_of(runs, part) if part else runs
    runs = [replace(one, log=tuple(log or ())) for one in runs]
    kept = None if no_cache else open_cache(cache, cache_gb)
    console = chatter()
    said: set[str] = set()

    def complain(complaint: str) -> None:
        if complaint not in said:  # several jobs may have the same complaint
            say(console, complaint)
        said.add(complaint)

    with closing(Resources(jobs, workers, kept, executor).pool(runs)) as pool:
        missing = _check(runs, console, pool, complain)
        failures = _carry_out(missing, console, pool, complain)
    for one, failure in failures.items():
        print(f"error: {one.name} failed: {failure.message} ({one.folder})", file=sys.stderr)
    done = f"{len(runs) - len(failures)} of {len(runs)} runs are done"
    saved = savings_of([one for one in missing if one not in failures])
    say(results(), f"{done}{saved}; their table: fedclock summary {runs[0].folder.parent}")
    if failures:
        raise typer.Exit(1)


def summary(
    folders: Folders,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="folder for the tables")
    ] = None,
    target: Target = None,
    baseline: Baseline = None,
    smooth: Smooth = SMOOTHING,
    where: Where = None,
) -> None:
    """Compare variants over seeds: a table for the eyes, and as Markdown, LaTeX and CSV."""
    # Imported here, since importing pandas takes a second.
    from analysis.metrics.side_by_side import studies_of
    from analysis.metrics.study import study
    from analysis.report.formats import TerminalTable, table_files
    from analysis.report.table import side_by_side
    from analysis.runs.blocks import blocks_of
    from analysis.runs.choose import chosen
    from analysis.runs.frames import open_runs

    console = results()
    with chatter().status("read runs"):
        blocks = blocks_of(chosen(open_runs(folders), where or ()))
        found = studies_of(
            blocks,
            lambda runs, base: study(runs, target=target, baseline=base, smoothing=smooth),
            baseline,
        )
    console.print(TerminalTable(side_by_side(found)))
    place = place_beside(folders, "summary", output, where or ())
    _write(table_files(found), place)
    for line in (line for one in found.values() for line in one.left_out):
        say(console, f"left out: {line}")
    say(console, f"Tables and the numbers of each run: {place}")


def _write(texts: Mapping[str, str], where: Path) -> None:
    try:
        with writing_into(where) as folder:
            for name, text in texts.items():
                (folder / name).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"the tables must be written to a folder, got {where}: {error}") from error


def _check(
    runs: Sequence[SweepRun], console: Console, pool: Pool, complain: Callable[[str], None]
) -> list[SweepRun]:
    """Return the runs that are missing. Raises UserError with all that is wrong."""
    found = outcomes(runs, "check", pool=pool, advanced=lambda *_: None, complain=complain)
    with console.status(f"check {counted(len(runs), 'run')}"), closing(found):
        results = dict(found)
    failed = [results[one] for one in runs if isinstance(results[one], Failure)]
    if failed:
        placed = [problem for one in failed for problem in one.found]
        problems = [line for one in failed if not one.found for line in one.message.splitlines()]
        raise UserError("\n".join(dict.fromkeys([*told(placed), *problems])))
    in_order: dict[SweepRun, Checked] = {one: results[one] for one in runs}
    notes = {note for result in in_order.values() for note in result.notes}
    for line in [*same_conditions(in_order), *sorted(notes)]:
        say(console, line)
    for one, result in in_order.items():
        if result.is_finished:
            refresh(one.folder, result.read_alone)
    missing = [one for one, result in in_order.items() if not result.is_finished]
    if kept := len(runs) - len(missing):
        say(console, f"{kept} of {len(runs)} runs were finished before, and are kept")
    return missing


def _carry_out(
    runs: Sequence[SweepRun], console: Console, pool: Pool, complain: Callable[[str], None]
) -> dict[SweepRun, Failure]:
    """Simulate the runs; return those that failed, and why."""
    failures: dict[SweepRun, Failure] = {}
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.completed:.0f}/{task.total:.0f} rounds"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    rounds, ended = dict.fromkeys(runs, 0), 0
    began_s = time.monotonic()

    def advance(one: SweepRun, number: int) -> None:
        rounds[one] = number
        left = time_left(rounds, time.monotonic() - began_s)
        progress.update(
            bar,
            completed=sum(rounds.values()),
            description=f"{ended}/{counted(len(runs), 'run')}{left}",
        )

    with progress:
        bar = progress.add_task(
            f"0/{counted(len(runs), 'run')}",
            total=sum(one.num_rounds for one in runs),
            start=bool(runs),
        )
        waiting = list(runs)
        while waiting:
            busy: list[SweepRun] = []
            found = outcomes(waiting, "run", pool=pool, advanced=advance, complain=complain)
            with closing(found):
                for one, result in found:
                    if isinstance(result, Failure) and result.is_busy:
                        busy.append(one)
                        complain(f"{one.name} waits for another process that is at work on it")
                        continue
                    ended += 1
                    advance(one, one.num_rounds)  # a run may end before its last round
                    if isinstance(result, Failure):
                        failures[one] = result
                    became = "failed" if one in failures else f"done{savings_of([one])}"
                    left = time_left(rounds, time.monotonic() - began_s)
                    line = f"[{ended}/{len(runs)}] {one.name}: {became} ({one.folder}){left}"
                    say(progress.console, line)
            waiting = busy
            if waiting:
                time.sleep(BUSY_S)
    return {one: failures[one] for one in runs if one in failures}


def time_left(rounds: Mapping[SweepRun, int], elapsed_s: float) -> str:
    """Return in words how long the rounds that are left take at the pace so far, after a comma.

    Nothing is said before the first run has ended, for its pace is that of loading and compiling.
    """
    total, done = sum(one.num_rounds for one in rounds), sum(rounds.values())
    has_ended = any(number >= one.num_rounds for one, number in rounds.items())
    if not has_ended or done >= total:
        return ""
    return f", about {duration(elapsed_s * (total - done) / done)} left"
