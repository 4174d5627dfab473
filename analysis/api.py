"""Runs experiments from scripts and notebooks, and returns each as a ``Result``.

Mistakes are exceptions (``UserError``) with the messages of the command line. Nothing is printed
unless a reporter is given; a notebook shows one line of progress.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from rich.console import Console

from analysis.results import Result, load
from analysis.runs.frames import whole
from simulator.config.experiment import ConfigError, load_experiment, read_experiment
from simulator.config.origin import Origin
from simulator.config.plain_yaml import dump_line
from simulator.config.problems import shown
from simulator.log.progress import LineReporter, PlainReporter, Reporter, is_notebook
from simulator.runs.preparation import Prepared, load_runs, prepare_all
from simulator.runs.run import run as run_one
from simulator.runs.sweep import LoadConfigs, sweep_configs
from simulator.workers.result_cache import DEFAULT_GB, open_cache
from simulator.workers.trainers import Trainers

IN_MEMORY = Path("<config>")
"""The path that stands for a config that is no file, in messages and for own schedulers."""


def run(
    config: Path | str | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    output: Path | str | None = None,
    workers: int | None = None,
    executor: str = "processes",
    cache: Path | str | None = "auto",
    report: Reporter | None = None,
) -> Result:
    """Simulate every strategy of an experiment, given as a file or as a mapping of its keys.

    ``overrides`` maps dotted keys to values: ``{"stop.rounds": 2}``. Finished runs below ``output``
    are kept as they are. Without an ``output``, runs are below ``runs``, and a run folder's own
    config is run in that folder. Training results are kept for later runs in ``cache``: ``auto`` is
    the user's own folder, and None keeps nothing; ``Result.savings`` counts those that were used
    again. A relative path starts at the folder of the file, in ``overrides`` too; in a mapping, at
    the working directory. Raises ConfigError with all that is wrong, before anything is written.
    """
    path, read = _reader(config)
    origin = Origin(path, tuple(_texts(overrides)))
    configs = load_runs(lambda: read(origin.overrides))
    prepared = prepare_all(configs, origin, None if output is None else Path(output))
    return _run_all(prepared, workers=workers, executor=executor, cache=cache, report=report)


def sweep(
    config: Path | str | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    seeds: int | Sequence[int] = 5,
    grid: Mapping[str, Sequence[Any]] | None = None,
    output: Path | str = "runs",
    workers: int | None = None,
    executor: str = "processes",
    cache: Path | str | None = "auto",
    report: Reporter | None = None,
) -> Result:
    """Simulate every strategy of an experiment at several seeds and grid points, one by one.

    ``seeds`` is a number of seeds, counted from the config's own, or a list of them. ``grid`` maps
    dotted keys to their values: ``{"strategy.rank": [4, 8]}``. The rest is as for ``run``.
    ``fedclock sweep`` can do several runs at once.
    """
    path, read = _reader(config)
    origin = Origin(path, tuple(_texts(overrides)))
    configs = sweep_configs(read, origin, grid=_grid_texts(grid), seeds=_seeds_text(seeds))
    in_order = sorted(configs, key=lambda config: whole(config.place))
    prepared = prepare_all(in_order, origin, Path(output))
    return _run_all(prepared, workers=workers, executor=executor, cache=cache, report=report)


def _texts(overrides: Mapping[str, Any] | None) -> list[str]:
    """Return overrides as the command line has them. Raises ConfigError if they are no mapping."""
    if not isinstance(overrides, Mapping | None):
        example = '{"stop.rounds": 2}'
        problem = f"overrides must map keys to values, as in {example}, got {shown(overrides)}"
        raise ConfigError([problem], "overrides")
    return [f"{key}={dump_line(value)}" for key, value in (overrides or {}).items()]


def _grid_texts(grid: Mapping[str, Sequence[Any]] | None) -> list[str]:
    """Return a grid as the command line has it. Raises ConfigError on a value that is no list."""
    example = '{"strategy.rank": [4, 8]}'
    rule = f"a grid must map each key to the list of its values, as in {example}, got"
    if not isinstance(grid, Mapping | None):
        raise ConfigError([f"{rule} {shown(grid)}"], "grid")
    if wrong := [value for value in (grid or {}).values() if not _is_list(value)]:
        raise ConfigError([f"{rule} {shown(wrong[0])}"], "grid")
    return [f"{k}={dump_line(list(v)).strip()[1:-1]}" for k, v in (grid or {}).items()]


def _is_list(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)


def _seeds_text(seeds: int | Sequence[int]) -> str:
    """Return seeds as the command line has them. Raises ConfigError if they are no seeds."""
    if isinstance(seeds, int):
        return str(seeds)
    if not _is_list(seeds) or not list(seeds):
        problem = f"seeds must be how many, or a list of them as in [0, 3, 7], got {shown(seeds)}"
        raise ConfigError([problem], "seeds")
    return ",".join(map(str, seeds)) + ","


def _reader(config: Path | str | Mapping[str, Any]) -> tuple[Path, LoadConfigs]:
    """Return a config's name in messages, and a function that reads its runs with overrides."""
    if isinstance(config, Mapping):
        content = config
        return IN_MEMORY, lambda texts: read_experiment(content, texts, IN_MEMORY)
    if not isinstance(config, str | PathLike):
        problem = f"an experiment must be a YAML file or a mapping of keys, got {shown(config)}"
        raise ConfigError([problem], "config")
    path = Path(config)
    return path, lambda texts: load_experiment(path, texts, code="of_run_folders")


def _run_all(
    prepared: Sequence[Prepared],
    *,
    workers: int | None,
    executor: str,
    cache: Path | str | None,
    report: Reporter | None,
) -> Result:
    kept = open_cache(None if cache == "auto" else Path(cache), DEFAULT_GB) if cache else None
    told = report or (LineReporter() if is_notebook() else PlainReporter(Console(quiet=True)))
    with Trainers(workers, kept, executor=executor) as trainers:
        return load(*(run_one(one, trainers=trainers, report=told) for one in prepared))
