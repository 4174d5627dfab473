"""Expands an experiment into the runs of a sweep, by seed and grid point, and checks each."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from simulator.config.experiment import ConfigError, load_experiment, name_strategies
from simulator.config.origin import Origin
from simulator.config.plain_yaml import dump_line, parse_yaml
from simulator.config.schema import RunConfig
from simulator.log.manifest import read_manifest
from simulator.log.progress import Reporter
from simulator.log.writers import find_writers
from simulator.runs.preparation import Prepared, load_runs, prepare
from simulator.runs.run import run, savings_in_words
from simulator.workers.trainers import Trainers
from traces.text import counted

T = TypeVar("T")

LoadConfigs = Callable[[Sequence[str]], list[RunConfig]]
"""A function that loads an experiment after it has applied these overrides."""
RESERVED = ("name", "label", "seed")
"""Keys that a grid must not vary, since they tell the runs of a sweep apart."""
MAX_RUNS = 100_000
"""The most runs of a sweep: seeds times grid points, all of which are checked beforehand."""


@dataclass(frozen=True)
class SweepRun:
    """A sweep run holds what any process needs to load the run, since configs cannot be sent."""

    file: Path
    overrides: tuple[str, ...]  # those of the command, then of the grid point and the seed
    label: str
    point: str  # the grid values in words, such as "strategy.rank=4"; empty without a grid
    seed: int
    folder: Path
    num_rounds: int
    place: tuple[int, ...] = ()  # its place among the runs of the experiment, as in its config
    is_training: bool = False  # False for a run in timing only
    log: tuple[str, ...] = ()  # names of the writers that log each round

    @property
    def name(self) -> str:
        """Return what a person calls the run: label, grid values and seed."""
        return " ".join(filter(None, [self.label, self.point, f"seed {self.seed}"]))

    def prepare(self) -> Prepared:
        """Check the run. Raises ConfigError also where its file has become invalid."""
        origin = Origin(self.file, self.overrides)
        configs = load_experiment(self.file, self.overrides)
        config = next(config for config in configs if config.label == self.label)
        try:
            return prepare(replace(config, place=self.place), self.folder, origin)
        except ConfigError as error:
            label = self.label if configs[1:] else None
            raise ConfigError(name_strategies(error.problems, label), origin) from None


@dataclass(frozen=True)
class Checked:
    """A checked run can begin; this holds what the check found."""

    conditions_hash: str
    is_finished: bool
    notes: tuple[str, ...]
    # The keys of the config that only readers of the run use.
    read_alone: Mapping[str, Any] = field(default_factory=dict)


def check(sweep_run: SweepRun) -> Checked:
    """Check everything that can be checked before the run; nothing is written."""
    prepared = sweep_run.prepare()
    conditions = prepared.world.conditions_hash
    alone = prepared.config.read_alone
    return Checked(conditions, prepared.is_finished, prepared.notes, alone)


def carry_out(sweep_run: SweepRun, trainers: Trainers, report: Reporter) -> Path:
    """Simulate the run, or go on with it where it was interrupted; return its folder."""
    writers = find_writers(sweep_run.log)
    return run(sweep_run.prepare(), trainers=trainers, report=report, writers=writers)


def savings_of(done: Sequence[SweepRun]) -> str:
    """Return in words how many trainings finished runs were spared; "" where none was."""
    manifests = [read_manifest(one.folder) for one in done]
    keys = ("num_trainings", "num_trainings_reused")
    return savings_in_words({key: sum(found.get(key, 0) for found in manifests) for key in keys})


def expand(
    file: Path, overrides: Sequence[str], *, grid: Sequence[str], seeds: str, output: Path
) -> list[SweepRun]:
    """Return the runs of every strategy at every seed and grid point, each once.

    ``seeds`` is how many, counted from the config's own, or a list of them: "0,3,7". Raises
    ConfigError with all that is wrong at any point.
    """
    load, origin = partial(load_experiment, file), Origin(file, tuple(overrides))
    runs: dict[Path, SweepRun] = {}
    for chosen, point, config in _configs(load, origin, grid=grid, seeds=seeds):
        # A strategy whose config is the same at several grid points has one run for all of them.
        runs.setdefault(
            output / config.folder,
            SweepRun(
                file=file,
                overrides=chosen,
                label=config.label,
                point=", ".join(point),
                seed=config.seed,
                folder=output / config.folder,
                num_rounds=config.stop.rounds,
                place=config.place,
                is_training=config.training != "none",
            ),
        )
    return list(runs.values())


def sweep_configs(
    load: LoadConfigs, origin: Origin, *, grid: Sequence[str], seeds: str
) -> list[RunConfig]:
    """Return the config of every run that ``expand`` names, from what loads an experiment."""
    runs: dict[Path, RunConfig] = {}
    for _, _, config in _configs(load, origin, grid=grid, seeds=seeds):
        runs.setdefault(config.folder, config)
    return list(runs.values())


def _configs(
    load: LoadConfigs, origin: Origin, *, grid: Sequence[str], seeds: str
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], RunConfig]]:
    """Yield the overrides, grid point and config of every strategy at every seed and point."""
    overrides = origin.overrides
    wrong: list[ConfigError] = []

    def attempt(read: Callable[[], list[T]]) -> list[T]:
        try:
            return read()
        except ConfigError as error:
            wrong.append(error)
            return []

    points = attempt(partial(grid_points, grid)) or [()]
    attempt(partial(_seeds, seeds, 0))
    loads = [partial(load, [*overrides, *point]) for point in points]
    first = [config for one in loads for config in attempt(partial(load_runs, one))]
    if wrong:
        raise ConfigError.together(wrong)
    numbers = _seeds(seeds, first[0].seed)
    _check_number(len(numbers) * len(points), "--seeds and --grid")
    places = _places(load, overrides, points)
    for seed, point in itertools.product(numbers, points):
        chosen = (*overrides, *point, f"seed={seed}")
        for config in load(chosen):
            place = _place(config.place, places[config.label, point])
            yield chosen, point, replace(config, place=place)


def _places(
    load: LoadConfigs, overrides: Sequence[str], points: Sequence[tuple[str, ...]]
) -> dict[tuple[str, tuple[str, ...]], tuple[int, ...]]:
    """Return the place of each label at each point: steps on each axis from the config's own value.

    They count from the first value of an axis where none is the config's own.
    """
    axes = [list(dict.fromkeys(values)) for values in zip(*points, strict=True)]
    own = _hashes(load, overrides)
    labels = [config.label for config in load([*overrides, *points[0]])]
    origins: dict[str, list[int]] = {label: [] for label in labels}
    for axis in axes:
        reached = [_hashes(load, [*overrides, value]) for value in axis]
        for label, origin in origins.items():
            is_own = (label in own and one.get(label) == own[label] for one in reached)
            origin.append(next((number for number, same in enumerate(is_own) if same), 0))
    return {
        (label, point): tuple(
            axis.index(value) - start
            for axis, value, start in zip(axes, point, origin, strict=True)
        )
        for label, origin in origins.items()
        for point in points
    }


def _hashes(load: LoadConfigs, overrides: Sequence[str]) -> dict[str, str]:
    """Return the hash of each label's config; empty where it holds only with more overrides."""
    try:
        return {config.label: config.hash for config in load(overrides)}
    except ConfigError:
        return {}


def _place(strategy: tuple[int, ...], steps: tuple[int, ...]) -> tuple[int, ...]:
    """Return the place of a run without the zeros at its end, as a run without a grid has it."""
    place = [*(strategy or (0,)), *steps]
    while place and place[-1] == 0:
        place.pop()
    return tuple(place)


def part_of(runs: Sequence[SweepRun], part: str) -> list[SweepRun]:
    """Return the runs of a part such as ``3/10``; all parts together are the sweep, each run once.

    Neighbours go to different parts, so that each has about as many of each strategy. Raises
    ConfigError where it is no part, or there are fewer runs than parts.
    """
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", part)
    number, num_parts = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= num_parts:
        problem = f"a part must read K/N with K from 1 to N, as in 3/10, got {part!r:.200}"
        raise ConfigError([problem], "--part")
    if num_parts > len(runs):
        problem = (
            f"a sweep of {len(runs)} runs must have at most {len(runs)} parts, got {num_parts}"
        )
        raise ConfigError([problem], "--part")
    return list(runs[number - 1 :: num_parts])


def grid_points(grid: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the overrides of every combination of ``key=value,value`` entries."""
    axes: dict[str, list[str]] = {}
    problems = []
    for entry in grid:
        key, equals, text = entry.partition("=")
        values, why = None, ""
        try:
            values = parse_yaml(f"[{text}]")
        except ValueError as error:
            why = f": {error}"
        if not (key.strip() and equals and values):
            problems.append(f"a grid must read key.key=value,value, got {entry!r:.200}{why}")
        elif key in axes or key in RESERVED:
            rule = "stand once" if key in axes else "not vary the names or the seed (--seeds does)"
            problems.append(f"a key of the grid must {rule}, got {key}")
        else:
            axes[key] = [f"{key}={dump_line(value)}" for value in values]
    if problems:
        raise ConfigError(problems, "--grid")
    _check_number(math.prod(map(len, axes.values())), "--grid")
    return list(itertools.product(*axes.values()))


def _check_number(num_runs: int, option: str) -> None:
    if num_runs > MAX_RUNS:
        raise ConfigError(
            [f"a sweep must have at most {MAX_RUNS} runs, got {num_runs:.3g}"], option
        )


def same_conditions(checked: Mapping[SweepRun, Checked]) -> list[str]:
    """Return one line for each seed and conditions, which says whose runs meet them.

    Raises ConfigError where strategies of one seed and grid point would meet unlike ones.
    """
    found: dict[tuple[int, str], str] = {}
    meeting: dict[tuple[int, str], list[SweepRun]] = {}
    for one, result in checked.items():
        conditions = found.setdefault((one.seed, one.point), result.conditions_hash)
        if conditions != result.conditions_hash:
            raise ConfigError(
                [
                    "all strategies must meet the same conditions, but those of "
                    f"{one.name} are {result.conditions_hash[:8]}, of others {conditions[:8]}"
                ],
                str(one.file),
            )
        meeting.setdefault((one.seed, conditions), []).append(one)
    lines = []
    for (seed, conditions), runs in meeting.items():
        labels = ", ".join(dict.fromkeys(one.label for one in runs))
        lines.append(
            f"seed {seed}: conditions {conditions[:8]} for {counted(len(runs), 'run')} of {labels}"
        )
    return lines


def _seeds(text: str, first: int) -> list[int]:
    """Return the seeds that the option asks for. Raises ConfigError where it cannot be read."""
    try:
        numbers = parse_yaml(f"[{text}]")
        why = ""
    except ValueError as error:
        numbers, why = [], f": {error}"
    is_whole = all(type(number) is int and 0 <= number < 2**63 for number in numbers)
    if not numbers or not is_whole or ("," not in text and numbers == [0]):
        raise ConfigError(
            [
                "seeds must be how many, at least 1, or a list as in 0,3,7 (seed 0 alone is 0 with "
                f"a comma: 0,), got {text!r:.200}{why}"
            ],
            "--seeds",
        )
    if "," in text:
        return list(dict.fromkeys(numbers))
    _check_number(numbers[0], "--seeds")
    return [first + k for k in range(numbers[0])]
