"""Runs experiments, reads runs back and draws them: the interface for scripts and notebooks.

Mistakes are exceptions (``UserError``) with the messages of the command line. Nothing is printed
unless a reporter is given, but for a line of progress in a notebook.
"""

from __future__ import annotations

import html
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console

from analysis import figures
from analysis.figures import sensitivity, style
from analysis.figures.rows import SHADE, of_runs
from analysis.metrics.side_by_side import Studies, studies_of
from analysis.metrics.study import Study, require_comparable, study_of
from analysis.report.table import side_by_side, study_table
from analysis.runs.blocks import blocks_of
from analysis.runs.files import Json, RunError
from analysis.runs.frames import RunSet, load_variants, open_runs, whole
from analysis.runs.load import Run
from analysis.runs.names import reader_names, with_names
from simulator.config.experiment import ConfigError, load_experiment, read_experiment
from simulator.config.origin import Origin
from simulator.config.plain_yaml import dump_line
from simulator.config.problems import shown
from simulator.log.disk import writing_into
from simulator.log.progress import LineReporter, PlainReporter, Reporter, is_notebook
from simulator.runs.preparation import Prepared, load_runs, prepare_all
from simulator.runs.run import run as run_one
from simulator.runs.sweep import LoadConfigs, sweep_configs
from simulator.workers.result_cache import DEFAULT_GB, open_cache
from simulator.workers.trainers import Trainers
from traces.text import counted, unknown

Runs: TypeAlias = "Path | str | Result"
"""A folder of runs, or runs that were read before."""

LISTED = {
    "variant": "Variant",
    "seed": "Seed",
    "num_rounds": "Rounds",
    "simulated_s": "Simulated time (s)",
}
"""What a notebook shows of runs that cannot be compared, with its titles."""

IN_MEMORY = Path("<config>")
"""The name in messages of a config that is no file; paths of own schedulers start beside it."""


@dataclass(frozen=True, eq=False)
class Result:
    """A result is a number of finished runs; its frames begin with label, strategy and seed."""

    runs: tuple[Run, ...]
    found: RunSet  # the same runs, as the metrics over seeds take them

    @property
    def rounds(self) -> pd.DataFrame:
        """One row a round of every run; round 0 is the initial model."""
        return self._rows(lambda run: run.rounds)

    @property
    def clients(self) -> pd.DataFrame:
        """One row for each plan that any run dispatched."""
        return self._rows(lambda run: run.clients)

    @property
    def devices(self) -> pd.DataFrame:
        """One row a device of every run's fleet."""
        return self._rows(lambda run: run.devices)

    @property
    def savings(self) -> pd.DataFrame:
        """One row a run: how many trainings it asked for, and how many were reused."""
        keys = ("num_trainings", "num_trainings_reused")
        return self._rows(lambda run: pd.DataFrame([{k: run.manifest.get(k, 0) for k in keys}]))

    @property
    def frames(self) -> dict[str, pd.DataFrame]:
        """The tables of all runs by name: rounds, clients, devices and savings."""
        return {name: getattr(self, name) for name in ("rounds", "clients", "devices", "savings")}

    def _rows(self, rows: Callable[[Run], pd.DataFrame]) -> pd.DataFrame:
        return of_runs(self.runs, rows).drop(columns=SHADE, errors="ignore")

    @property
    def blocks(self) -> dict[str, Result]:
        """The runs in the blocks that can be compared, by heading; "" where there is one alone."""
        return {block.heading: self._chosen(runs) for block, runs in blocks_of(self.found).items()}

    @property
    def manifest(self) -> Json:
        """The manifest of the only run. Raises RunError where there are several."""
        return self._only().manifest

    @property
    def adapter(self) -> Path | None:
        """The folder of the only run's adapter, in PEFT's format.

        None where nothing was trained, or the strategy has no global model. Raises RunError where
        there are several runs.
        """
        folder = self._only().path / "adapter"
        return folder if folder.is_dir() else None

    def __getitem__(self, label: str) -> Result:
        """Return the runs of one label at all seeds. Raises RunError that lists the labels."""
        chosen = tuple(run for run in self.runs if run.label == label)
        if not chosen:
            labels = list(dict.fromkeys(run.label for run in self.runs))
            raise RunError(unknown("the label", label, labels))
        return Result(chosen, self.found.where(variant=label))

    def where(self, **wanted: object) -> Result:
        """Return the runs that have these values, as ``RunSet.where`` chooses them."""
        return self._chosen(self.found.where(**wanted))

    def without(self, **unwanted: object) -> Result:
        """Return the runs that have none of these values, as ``RunSet.without`` chooses them."""
        return self._chosen(self.found.without(**unwanted))

    def _chosen(self, found: RunSet) -> Result:
        """Return the runs of a part of ``found``, by the names of variants that it has there."""
        variants = dict(zip(found.runs["path"], found.runs["variant"], strict=True))
        runs = [
            replace(run, label=variants[str(run.path)])
            for run in self.runs
            if str(run.path) in variants
        ]
        return Result(tuple(runs), found)

    def compare(self, *, target: float | None = None, baseline: str | None = None) -> Study:
        """Return the study of these runs, which every figure takes.

        Raises RunError where they met unlike conditions, or on a target or baseline that cannot be.
        """
        require_comparable(self.found)
        return study_of(self.runs, target=target, baseline=baseline)

    def table(self, *, target: float | None = None, baseline: str | None = None) -> pd.DataFrame:
        """Return the table of ``fedclock summary``: metrics down, variants across, as texts.

        The rows of several blocks have the block before the metric. Raises RunError on a target or
        baseline that cannot be.
        """
        return _as_frame(self._studies(target=target, baseline=baseline))

    def _studies(self, *, target: float | None = None, baseline: str | None = None) -> Studies:
        def study(runs: RunSet, base: str | None) -> Study:
            return self._chosen(runs).compare(target=target, baseline=base)

        return studies_of(blocks_of(self.found), study, baseline)

    def __repr__(self) -> str:
        """Name the runs in a line."""
        seeds = self.found.runs["seed"].nunique()
        variants = ", ".join(self.found.variants)
        return f"<{counted(len(self.runs), 'run')} at {counted(seeds, 'seed')}: {variants}>"

    def _repr_html_(self) -> str:
        """Return the table for a notebook; of runs that cannot be compared, what they are."""
        try:
            studies = self._studies()
        except RunError:
            listed: str = self.found.runs[list(LISTED)].rename(columns=LISTED).to_html(index=False)
            return listed
        table = side_by_side(studies)
        notes = "".join(f"<p>{html.escape(line)}</p>" for line in (table.note, *table.warnings))
        shown: str = _as_frame(studies).to_html()
        return shown + notes

    def frame(self, name: str, *, target: float | None = None) -> pd.DataFrame:
        """Return the frame that the figure of this name plots. Raises RunError for no such name."""
        study = self.compare(target=target)
        return _spec(name, study).of(study)

    def draw(self, name: str, *, paper: style.Paper | str = style.IEEE) -> Figure:
        """Return the figure of this name. Raises RunError if there is none, or nothing to show."""
        study = self.compare()
        spec = _spec(name, study)
        return draw(with_names(spec.of(study), study.names), spec.draw, paper=paper)

    def sensitivity(self, key: str, *, target: float | None = None) -> pd.DataFrame:
        """Return one row a run: its results, beside the value that a key of its config has."""
        return sensitivity.frame(self.runs, key, target=target)

    def _only(self) -> Run:
        if len(self.runs) != 1:
            names = ", ".join(f"{run.label} s{run.manifest['seed']}" for run in self.runs)
            raise RunError(f"the result must hold one run, got {names}; choose by label or seed")
        return self.runs[0]


def _as_frame(studies: Studies) -> pd.DataFrame:
    """Return the table of studies as a frame of texts."""
    parts = {}
    for block, study in studies.items():
        table = study_table(study)
        texts = [[cell.text for cell in row.cells] for row in table.rows]
        titles = [row.title for row in table.rows]
        parts[block.heading] = pd.DataFrame(texts, index=titles, columns=table.variants)
    if len(parts) == 1:
        return next(iter(parts.values()))
    return pd.concat(parts, names=["block", None]).fillna("")


def summary(*runs: Runs, target: float | None = None, baseline: str | None = None) -> pd.DataFrame:
    """Return the table of the finished runs that ``load`` finds, as ``Result.table`` has it."""
    return load(*runs).table(target=target, baseline=baseline)


def compare(*runs: Runs, target: float | None = None, baseline: str | None = None) -> Study:
    """Return the study of the finished runs that ``load`` finds: every number of every run."""
    return load(*runs).compare(target=target, baseline=baseline)


def draw(
    frame: pd.DataFrame, drawing: figures.Draw, *, paper: style.Paper | str = style.IEEE
) -> Figure:
    """Return a figure of a frame in FedClock's style. Raises RunError for an empty frame."""
    if frame.empty:
        raise RunError("the runs hold nothing to plot in this figure")
    with style.context():
        return drawing(frame, _paper(paper))


def _paper(paper: style.Paper | str) -> style.Paper:
    """Return the paper, which may be named. Raises RunError where there is none of the name."""
    if isinstance(paper, str) and paper not in style.PAPERS:
        raise RunError(unknown("paper", paper, style.PAPERS))
    return style.PAPERS[paper] if isinstance(paper, str) else paper


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
    (``runs``; the run whose own config is given, where it is) are kept as they are, and training
    results in ``cache`` for later runs: ``auto`` is the user's own folder, None keeps nothing
    (``Result.savings`` has what it saved). A relative path starts at the folder of the file, in
    ``overrides`` too; in a mapping, at the working directory. Raises ConfigError with all that is
    wrong, before anything is written.
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

    ``seeds`` is how many, counted from the config's own, or which; ``grid`` maps dotted keys to
    their values: ``{"strategy.rank": [4, 8]}``. The rest is as for ``run``; ``fedclock sweep`` has
    several runs at once.
    """
    path, read = _reader(config)
    origin = Origin(path, tuple(_texts(overrides)))
    configs = sweep_configs(read, origin, grid=_grid_texts(grid), seeds=_seeds_text(seeds))
    in_order = sorted(configs, key=lambda config: whole(config.place))
    prepared = prepare_all(in_order, origin, Path(output))
    return _run_all(prepared, workers=workers, executor=executor, cache=cache, report=report)


def _texts(overrides: Mapping[str, Any] | None) -> list[str]:
    """Return overrides as the command line has them. Raises ConfigError on what is no mapping."""
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
    """Return seeds as the command line has them. Raises ConfigError on what are none."""
    if isinstance(seeds, int):
        return str(seeds)
    if not _is_list(seeds) or not list(seeds):
        problem = f"seeds must be how many, or a list of them as in [0, 3, 7], got {shown(seeds)}"
        raise ConfigError([problem], "seeds")
    return ",".join(map(str, seeds)) + ","


def _reader(config: Path | str | Mapping[str, Any]) -> tuple[Path, LoadConfigs]:
    """Return what messages call a config, and what reads its runs after overrides."""
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


def load(*runs: Runs) -> Result:
    """Return the finished runs in (or directly below) these folders, one label a variant.

    A result stands for its own runs. Runs that have not ended or are damaged are named in
    ``found.left_out``, and each is a warning. Raises RunError where none is left.
    """
    found = open_runs([folder for one in runs for folder in _folders(one)])
    result = result_of(found)
    for line in result.found.left_out:
        warnings.warn(f"left out: {line}", stacklevel=2)
    return result


def _folders(runs: Runs) -> list[Path]:
    """Return the folders that were named. Raises RunError on what names none."""
    if isinstance(runs, Result):
        return [run.path for run in runs.runs]
    if not isinstance(runs, str | PathLike):
        each = ", each as an argument of its own: *folders" * isinstance(runs, list | tuple)
        raise RunError(f"runs must be given as folders or results{each}, got {runs!r:.60}")
    return [Path(runs)]


def result_of(found: RunSet) -> Result:
    """Return these runs whole. One that turns out damaged is named in ``found.left_out``.

    Raises RunError where none can be read.
    """
    runs, damaged = load_variants(found)
    paths = {str(run.path) for run in runs}
    read = found.runs[found.runs["path"].isin(paths)]
    return Result(tuple(runs), RunSet(read, (*found.left_out, *damaged)))


@contextmanager
def _figures_into(folder: Path | str) -> Iterator[Path]:
    """Yield a folder whose files move to ``folder`` at the end. Raises RunError if they cannot."""
    try:
        with writing_into(Path(folder)) as staged:
            yield staged
    except OSError as error:
        raise RunError(f"figures must be written to a folder, got {folder}: {error}") from None


def _spec(name: str, study: Study) -> figures.FigureSpec:
    specs = {spec.name: spec for spec in figures.figures_of(study.metric)}
    if name in specs:
        return specs[name]
    raise RunError(unknown("a figure", name, specs))


def write_figures(
    runs: Runs,
    folder: Path | str,
    *,
    names: Sequence[str] | str = (),
    paper: style.Paper | str = style.IEEE,
    target: float | None = None,
    devices: Sequence[int] = (),
) -> list[Path]:
    """Write the named figures, or all that have something to show, in every format with CSV.

    The runs are a result, or what ``load`` finds. Those of several blocks have figures each, in a
    folder of its own. ``devices`` are those that figures of single devices show (gantt, memory,
    choices); all, where none is named. Raises RunError on a name that is none, or without any of
    the devices.
    """
    result = runs if isinstance(runs, Result) else load(runs)
    asked, kind = [names] if isinstance(names, str) else names, _paper(paper)
    studies = result._studies(target=target)
    with _figures_into(folder) as staged:
        drawn: list[Path] = []
        for block, study in studies.items():
            shown = replace(study, devices=tuple(devices))
            specs = [_spec(name, study) for name in asked] or figures.figures_of(study.metric)
            inner = staged / block.folder
            inner.mkdir(exist_ok=True)
            drawn += [p for spec in specs for p in figures.write(spec, shown, inner, paper=kind)]
        return [Path(folder) / path.relative_to(staged) for path in drawn]


def write_sensitivity(
    result: Result,
    folder: Path | str,
    key: str,
    *,
    paper: style.Paper = style.IEEE,
    target: float | None = None,
) -> list[Path]:
    """Write what the runs came to against the values of a key, or ("fleet") the fleet's size."""
    names = reader_names(
        (str(run.manifest["label"]), run.strategy, run.strategy_title) for run in result.runs
    )
    if key == "fleet":
        name, frame = "scalability", with_names(sensitivity.scale_frame(result.runs), names)
        files = figures.render(frame, sensitivity.draw_scale, paper)
    else:
        name = "sensitivity"
        frame = with_names(sensitivity.frame(result.runs, key, target=target), names)
        files = figures.render(frame, sensitivity.draw, paper)
    with _figures_into(folder) as staged:
        for suffix, content in files.items():
            (staged / f"{name}.{suffix}").write_bytes(content)
    return [Path(folder) / f"{name}.{suffix}" for suffix in files]
