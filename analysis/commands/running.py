"""Defines the commands ``fedclock run``, ``validate``, ``record`` and ``list``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from analysis.commands.options import (
    Cache,
    CacheSize,
    ExecutorOption,
    File,
    Log,
    NoCache,
    Overrides,
    Workers,
    say,
)
from analysis.commands.voice import chatter
from analysis.escape import visible
from devices.vocabulary.trainer import TrainingError
from simulator.config.experiment import ConfigError, code_of, load_experiment
from simulator.config.origin import Origin
from simulator.config.schema import RunConfig
from simulator.log.progress import reporter
from simulator.log.writers import WriterSpec, find_writers
from simulator.runs.listing import TOPICS, show
from simulator.runs.preparation import load_runs, prepare_all
from simulator.runs.run import run
from simulator.workers.result_cache import DEFAULT_GB, open_cache
from simulator.workers.trainers import Trainers
from simulator.world.record import record
from traces.text import unknown

OwnOutput = Annotated[
    Path | None,
    typer.Option(
        help="folder that run folders are made in: runs; the run whose config FILE is stays there",
        show_default=False,
    ),
]

NOWHERE = Path("no-such-folder")
"""A folder that does not exist, so that no run there can collide with a config."""


def complain(error: Exception) -> None:
    """Print each line of an error's message on standard error."""
    for line in str(error).splitlines():
        print(f"error: {visible(line)}", file=sys.stderr)


def run_experiment(
    file: File,
    overrides: Overrides = None,
    only: Annotated[str | None, typer.Option(help="label of the only strategy to run")] = None,
    output: OwnOutput = None,
    workers: Workers = None,
    executor: ExecutorOption = "processes",
    log: Log = None,
    cache: Cache = None,
    cache_gb: CacheSize = DEFAULT_GB,
    no_cache: NoCache = False,
) -> None:
    """Simulate the strategies of an experiment; finished runs are kept as they are."""
    writers = find_writers(log or ())
    for code in code_of(file, overrides or ()):
        print(f"{file}: runs the code in {code}", file=sys.stderr)
    origin = Origin(file, tuple(overrides or ()))
    configs = load_runs(lambda: load_experiment(file, origin.overrides, code="of_run_folders"))
    configs = select(configs, only, option="--only")
    kept = None if no_cache else open_cache(cache, cache_gb)
    trainers = Trainers(workers, kept, executor=executor)
    folders = run_all(configs, origin, output=output, trainers=trainers, writers=writers)
    if chatter().quiet:  # otherwise each run has printed its folder
        for folder in folders:
            print(folder)


def validate(
    files: Annotated[list[Path], typer.Argument(help="experiment YAML files")],
    overrides: Overrides = None,
) -> None:
    """Check experiments: keys, names, budgets, models of one's own, prompts. Nothing is written."""
    failed = False
    for file in files:
        try:
            origin = Origin(file, tuple(overrides or ()))
            configs = load_runs(partial(load_experiment, file, origin.overrides))
            with Trainers(1) as trainers:
                for checked in prepare_all(configs, origin, NOWHERE):
                    trainers.try_model(checked.config, checked.world)
                    for note in checked.notes:
                        say(chatter(), f"{file}: {note}")
            print(f"{file}: valid")
        except (ConfigError, TrainingError) as error:
            complain(error)
            failed = True
    if failed:
        raise typer.Exit(2)


def record_conditions(
    folder: Annotated[Path, typer.Argument(help="a finished run's folder", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder to write to")],
) -> None:
    """Write the conditions that a run met as traces, with an experiment that replays them."""
    file = record(folder, output)
    print(f"Recorded: {file.parent}; replay it with: fedclock run {file}")


def list_names(
    topic: Annotated[str | None, typer.Argument(help=" | ".join(TOPICS))] = None,
) -> None:
    """Show what a config may name: strategies, devices, models, data, traces."""
    show(Console(), topic)


def select(configs: Sequence[RunConfig], label: str | None, *, option: str) -> list[RunConfig]:
    """Return the run whose label this option names, or all."""
    chosen = [config for config in configs if label in (None, config.label)]
    if not chosen:
        labels = [config.label for config in configs]
        raise ConfigError([unknown("the label", label, labels)], option)
    return chosen


def run_all(
    configs: Sequence[RunConfig],
    origin: Origin,
    *,
    output: Path | None,
    trainers: Trainers,
    writers: Sequence[WriterSpec] = (),
) -> list[Path]:
    """Run one config after the other with the same trainers; return the run folders."""
    report = reporter(chatter())
    prepared = prepare_all(configs, origin, output)
    with trainers:
        return [run(each, trainers=trainers, report=report, writers=writers) for each in prepared]
