"""The command ``fedclock``: run, validate and list; other packages add theirs as entry points."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from devices.cost.measured import OutsideMeasuredError
from devices.trainer import TrainingError
from simulator.config import RunConfig
from simulator.experiment import ConfigError, load_experiment, name_strategies
from simulator.invariants import InvariantError
from simulator.listing import TOPICS, show
from simulator.problems import UserError
from simulator.progress import reporter
from simulator.recording import record
from simulator.result_cache import DEFAULT_GB, open_cache
from simulator.run import Prepared, prepare, run
from simulator.trainers import EXECUTORS, Trainers
from simulator.writers import WRITERS, WriterSpec, find_writers

COMMANDS = "fedclock.commands"
"""Entry points of this group become commands: a function one, a typer.Typer a group of them."""

PACKAGES = ("traces", "devices", "algorithms", "simulator", "analysis")

app = typer.Typer(
    name="fedclock",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Federated LoRA fine-tuning on simulated edge devices: simulated clock, real training.",
)

NOWHERE = Path("no-such-folder")
"""Where nothing stands that a config could collide with."""

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


@app.command("run")
def run_command(
    file: File,
    overrides: Overrides = None,
    only: Annotated[str | None, typer.Option(help="one strategy's label")] = None,
    output: Output = Path("runs"),
    workers: Workers = None,
    executor: ExecutorOption = "processes",
    log: Log = None,
    cache: Cache = None,
    cache_gb: CacheSize = DEFAULT_GB,
    no_cache: NoCache = False,
) -> None:
    """Simulate the strategies of an experiment; finished runs are kept as they are."""
    writers = find_writers(log or ())
    configs = select(load_experiment(file, overrides or ()), only, option="--only")
    kept = None if no_cache else open_cache(cache, cache_gb)
    trainers = Trainers(workers, kept, executor=executor)
    run_all(configs, file, output=output, trainers=trainers, writers=writers)


@app.command("validate")
def validate_command(
    files: Annotated[list[Path], typer.Argument(help="experiment YAML files")],
    overrides: Overrides = None,
) -> None:
    """Check experiments: keys, names, budgets. Nothing is written."""
    failed = False
    for file in files:
        try:
            for checked in prepare_all(load_experiment(file, overrides or ()), file, NOWHERE):
                for note in checked.notes:
                    print(f"{file}: {note}")
            print(f"{file}: valid")
        except ConfigError as error:
            complain(error)
            failed = True
    if failed:
        raise typer.Exit(2)


@app.command("record")
def record_command(
    folder: Annotated[Path, typer.Argument(help="a finished run's folder", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder to write to")],
) -> None:
    """Write the conditions that a run met as traces, with an experiment that replays them."""
    file = record(folder, output)
    print(f"Recorded: {file.parent}; replay it with: fedclock run {file}")


@app.command("list")
def list_command(
    topic: Annotated[str | None, typer.Argument(help=" | ".join(TOPICS))] = None,
) -> None:
    """Show what a config may name: strategies, devices, models, data, traces."""
    if topic is not None and topic not in TOPICS:
        raise ConfigError([f"the topic must be one of {', '.join(TOPICS)}, got {topic}"], "list")
    show(Console(), topic)


def select(configs: Sequence[RunConfig], label: str | None, *, option: str) -> list[RunConfig]:
    """The run of the label that this option names, or all."""
    chosen = [config for config in configs if label in (None, config.label)]
    if not chosen:
        labels = ", ".join(config.label for config in configs)
        raise ConfigError([f"the label must be one of {labels}, got {label}"], option)
    return chosen


def run_all(
    configs: Sequence[RunConfig],
    file: Path,
    *,
    output: Path,
    trainers: Trainers,
    writers: Sequence[WriterSpec] = (),
) -> list[Path]:
    """Run one config after the other with the same trainers; return the run folders."""
    report = reporter(Console())
    prepared = prepare_all(configs, file, output)
    try:
        with trainers:
            return [
                run(each, trainers=trainers, report=report, writers=writers) for each in prepared
            ]
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None


def prepare_all(configs: Sequence[RunConfig], file: Path, output: Path) -> list[Prepared]:
    """Check all runs before the first begins. Raises ConfigError with what is wrong in any."""
    prepared, problems = [], []
    for config in configs:
        try:
            prepared.append(prepare(config, output / config.folder, str(file)))
        except ConfigError as error:
            problems += name_strategies(error.problems, config.label if configs[1:] else None)
    if problems:
        raise ConfigError(problems, str(file))
    return prepared


def complain(error: Exception) -> None:
    """Say what is wrong, one line each."""
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr)


def _check_packages() -> None:
    """The package names are common words: say so where another project's stands before ours."""
    home = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or origin.parent.parent != home:
            sys.exit(
                f"fedclock: the package {name!r} must be FedClock's own ({home / name}), got "
                f"{origin}; install FedClock in a virtual environment of its own"
            )


def main() -> None:
    """Run the command line; a mistake of the user's is one message and exit code 2."""
    _check_packages()
    for entry in entry_points(group=COMMANDS):
        loaded = entry.load()
        if isinstance(loaded, typer.Typer):
            app.add_typer(loaded, name=entry.name)
        else:
            app.command(entry.name)(loaded)
    try:
        app()
    except (UserError, TrainingError, OutsideMeasuredError) as error:
        complain(error)
        sys.exit(2)
    except InvariantError as error:
        complain(error)
        print(
            "This is a mistake in FedClock or in a scheduler of your own; the run folder keeps the "
            "events up to it.",
            file=sys.stderr,
        )
        sys.exit(1)
