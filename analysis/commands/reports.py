"""Defines the commands ``fedclock compare``, ``report`` and ``timeline``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

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
    Workers,
    place_beside,
    say,
)
from analysis.commands.running import run_all, select
from analysis.commands.voice import chatter, results
from analysis.metrics.definitions import wrong_target
from devices.tasks.registry import TASKS
from simulator.config.experiment import ConfigError, load_experiment
from simulator.config.origin import Origin
from simulator.config.problems import UserError
from simulator.log.disk import replace_file
from simulator.log.writers import find_writers
from simulator.runs.preparation import load_runs
from simulator.workers.result_cache import DEFAULT_GB, open_cache
from simulator.workers.trainers import Trainers


def compare(
    file: File,
    overrides: Overrides = None,
    output: Output = Path("runs"),
    workers: Workers = None,
    executor: ExecutorOption = "processes",
    log: Log = None,
    cache: Cache = None,
    cache_gb: CacheSize = DEFAULT_GB,
    no_cache: NoCache = False,
    target: Target = None,
    baseline: Baseline = None,
) -> None:
    """Simulate all strategies of an experiment and report on them side by side."""
    writers = find_writers(log or ())
    origin = Origin(file, tuple(overrides or ()))
    configs = load_runs(partial(load_experiment, file, origin.overrides))
    # A wrong name is reported before hours of training, not after.
    if baseline is not None:
        select(configs, baseline, option="--baseline")
    metric = TASKS[configs[0].task.kind].metrics[0]
    if target is not None and (wrong := wrong_target(metric, target)):
        raise ConfigError([wrong], "--target")
    kept = None if no_cache else open_cache(cache, cache_gb)
    trainers = Trainers(workers, kept, executor=executor)
    folders = run_all(configs, origin, output=output, trainers=trainers, writers=writers)
    _report(folders, output / configs[0].name / "report", target=target, baseline=baseline)


def report(
    folders: Folders,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="folder for the report, or page.html for the page alone"
        ),
    ] = None,
    target: Target = None,
    baseline: Baseline = None,
    where: Where = None,
) -> None:
    """Compare finished runs: table and figures, with the numbers behind them."""
    place = place_beside(folders, "report", output, where or ())
    _report(folders, place, target=target, baseline=baseline, where=where or ())


def timeline(
    folder: Annotated[Path, typer.Argument(help="a run folder", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="trace.json in the run folder if absent")
    ] = None,
) -> None:
    """Write a finished run as a Chrome trace, a lane per device: open it at ui.perfetto.dev."""
    from analysis.report.timeline import trace
    from analysis.runs.load import load_run

    where = output or folder / "trace.json"
    text = trace(load_run(folder))
    try:
        replace_file(where, text)
    except OSError as error:
        raise UserError(f"the trace cannot be written to {where}: {error}") from None
    say(results(), f"Trace: {where} (open it at https://ui.perfetto.dev or in chrome://tracing)")


def _report(
    folders: list[Path],
    place: Path,
    *,
    target: float | None,
    baseline: str | None,
    where: Sequence[str] = (),
) -> None:
    # Imported here, since importing pandas and matplotlib takes a second.
    from analysis.report.data import differing_settings
    from analysis.report.formats import TerminalTable
    from analysis.report.report import PAGE, write_report
    from analysis.report.table import side_by_side

    console = results()
    with chatter().status("report") as status:
        studies = write_report(
            folders,
            place,
            where=where,
            target=target,
            baseline=baseline,
            progress=lambda done, total, what: status.update(f"report: {what} ({done}/{total})"),
        ).studies
    console.print(TerminalTable(side_by_side(studies)))
    for block, study in studies.items():
        if differing := differing_settings(study.runs):
            of_block = f" of {block.heading}" if block.heading else ""
            say(
                console, f"Beside the strategy, the runs{of_block} differ in {', '.join(differing)}"
            )
        for line in study.left_out:
            say(console, f"left out: {line}")
    is_page = place.suffix == PAGE
    say(console, f"Report: {place if is_page else place / f'report{PAGE}'}")
    for block in studies:
        if not is_page:
            inner = place / block.folder / "figures"
            say(chatter(), f"Figures and the numbers behind them: {inner}")
