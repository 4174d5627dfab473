"""Reads finished runs back: their frames, tables and figures, as scripts and notebooks take them.

Mistakes are exceptions (``UserError``) with the messages of the command line.
"""

from __future__ import annotations

import html
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import pandas as pd
from matplotlib.figure import Figure

from analysis import figures
from analysis.figures import sensitivity, style
from analysis.figures.rows import SHADE, of_runs
from analysis.metrics.side_by_side import Studies, studies_of
from analysis.metrics.study import Study, study_of
from analysis.report.table import side_by_side, study_table
from analysis.runs.blocks import blocks_of, require_comparable
from analysis.runs.files import Json, RunError
from analysis.runs.frames import RunSet, load_variants, open_runs
from analysis.runs.load import Run
from analysis.runs.names import reader_names, with_names
from simulator.log.disk import writing_into
from traces.text import counted, unknown

Runs: TypeAlias = "Path | str | Result"
"""A folder of runs, or runs that were read before."""

LISTED = {
    "variant": "Variant",
    "seed": "Seed",
    "num_rounds": "Rounds",
    "simulated_s": "Simulated time (s)",
}
"""The columns, with their titles, that a notebook shows of runs that cannot be compared."""


@dataclass(frozen=True, eq=False)
class Result:
    """A result is a number of finished runs; its frames begin with label, strategy and seed."""

    runs: tuple[Run, ...]
    found: RunSet  # the same runs as a table, by which they are chosen

    @property
    def rounds(self) -> pd.DataFrame:
        """Return one row for each round of each run; round 0 is the initial model."""
        return self._rows(lambda run: run.rounds)

    @property
    def clients(self) -> pd.DataFrame:
        """Return one row for each plan that any run dispatched."""
        return self._rows(lambda run: run.clients)

    @property
    def devices(self) -> pd.DataFrame:
        """Return one row for each device of each run's fleet."""
        return self._rows(lambda run: run.devices)

    @property
    def savings(self) -> pd.DataFrame:
        """Return for each run how many trainings it asked for, and how many were reused."""
        keys = ("num_trainings", "num_trainings_reused")
        return self._rows(lambda run: pd.DataFrame([{k: run.manifest.get(k, 0) for k in keys}]))

    @property
    def frames(self) -> dict[str, pd.DataFrame]:
        """Return the tables of all runs by name: rounds, clients, devices and savings."""
        return {name: getattr(self, name) for name in ("rounds", "clients", "devices", "savings")}

    def _rows(self, rows: Callable[[Run], pd.DataFrame]) -> pd.DataFrame:
        return of_runs(self.runs, rows).drop(columns=SHADE, errors="ignore")

    @property
    def blocks(self) -> dict[str, Result]:
        """Return the runs of each block that can be compared; the heading of a single one is ""."""
        return {block.heading: self._chosen(runs) for block, runs in blocks_of(self.found).items()}

    @property
    def manifest(self) -> Json:
        """Return the manifest of the only run. Raises RunError where there are several."""
        return self._only().manifest

    @property
    def adapter(self) -> Path | None:
        """Return the folder of the only run's adapter, in PEFT's format.

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
        """Return the runs of a part of ``found``, labelled by the names of its variants."""
        variants = dict(zip(found.runs["path"], found.runs["variant"], strict=True))
        runs = [
            replace(run, label=variants[str(run.path)])
            for run in self.runs
            if str(run.path) in variants
        ]
        return Result(tuple(runs), found)

    def compare(self, *, target: float | None = None, baseline: str | None = None) -> Study:
        """Return the study of these runs, which every figure takes.

        Raises RunError if they met unlike conditions, the target is out of range, or the baseline
        is no variant.
        """
        require_comparable(self.found)
        return study_of(self.runs, target=target, baseline=baseline)

    def table(self, *, target: float | None = None, baseline: str | None = None) -> pd.DataFrame:
        """Return the table of ``fedclock summary``: metrics down, variants across, as texts.

        The rows of several blocks have the block before the metric. Raises RunError if the target
        is out of range or the baseline is no variant.
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
        """Return the table for a notebook, or a list of the runs if they cannot be compared."""
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
        """Return the results of each run in a row, beside the value of a key in its config."""
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

    The runs are a result, or what ``load`` finds. If they are of several blocks, each block has
    figures in a folder of its own. ``devices`` are those that figures of single devices show
    (gantt, memory, choices); all, if none is named. Raises RunError if there is no figure of a
    name, or none of the devices took part.
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
    """Write figures of the runs' results over the values of a key, or over the fleet's size.

    The key ``fleet`` stands for the size.
    """
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
