"""A report: figures, the table in three formats, and one page that says what they mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from analysis import figures
from analysis.metrics.comparison import Comparison, compare
from analysis.metrics.study import Study, study
from analysis.report import page, report_page, seed_tables, tables
from analysis.report.report_page import Judged
from analysis.runs.files import RunError
from analysis.runs.frames import open_runs
from analysis.runs.load import load_finished, load_run
from simulator.log.disk import staging, writing_into

PAGE = ".html"
Progress = Callable[[int, int, str], None]
"""Told before each step: steps done, steps in all, what comes next."""


@dataclass(frozen=True, eq=False)
class Report:
    """What was compared and what was written."""

    comparison: Comparison
    over_seeds: Study | None  # where the runs are of several seeds
    out: Path  # the folder, or the page
    files: tuple[Path, ...]
    left_out: tuple[str, ...]  # runs that have not ended, and what to do


def write_report(
    run_paths: Sequence[Path],
    out: Path,
    *,
    target: float | None = None,
    baseline: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compare the finished runs in (or directly below) these folders, and write it to ``out``.

    That is a folder, or a name ending in .html for the page alone. Files appear only once all of
    them exist; other files in the folder stay. Raises RunError on runs that cannot be read or
    compared, on a target or baseline that cannot be, and where ``out`` cannot be written.
    """
    is_page = out.suffix == PAGE
    if not is_page and out.exists() and not out.is_dir():
        raise RunError(f"the report must be written to a folder, got {out}, which is a file")
    tell = progress or _silent
    total = len(figures.FIGURES) + 2
    tell(0, total, "read runs")
    comparison, over_seeds, left_out = _judge(run_paths, target, baseline)
    try:
        with _page_alone(out) if is_page else writing_into(out) as folder:
            (folder / "figures").mkdir()
            drawn = []
            for step, spec in enumerate(figures.FIGURES, start=1):
                tell(step, total, f"draw {spec.name}")
                if figures.write(spec, comparison, folder / "figures"):
                    drawn.append(spec)
            tell(total - 1, total, "write tables")
            judged = Judged(comparison, over_seeds, drawn, left_out)
            _write_texts(folder, judged)
            names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    except OSError as error:
        raise RunError(f"the report cannot be written to {out}: {error}") from error
    files = (out,) if is_page else tuple(out / name for name in names)
    tell(total, total, "done")
    return Report(comparison, over_seeds, out, files, tuple(left_out))


def _judge(
    paths: Sequence[Path], target: float | None, baseline: str | None
) -> tuple[Comparison, Study | None, Sequence[str]]:
    """The runs side by side; where they are of several seeds, what these say together, too.

    A run is then known by its variant: runs of several seeds share a label.
    """
    found = open_runs(paths)
    if found.runs["seed"].nunique() == 1:
        runs, left_out = load_finished(paths)
        return compare(runs, target=target, baseline=baseline), None, left_out
    over_seeds = study(found, target=target, baseline=baseline)
    kept = over_seeds.runs
    runs = [
        replace(load_run(Path(path)), label=str(variant))
        for path, variant in zip(kept.runs["path"], kept.runs["variant"], strict=True)
    ]
    comparison = compare(runs, target=target, baseline=over_seeds.baseline)
    return replace(comparison, target=over_seeds.target), over_seeds, kept.left_out


def _write_texts(folder: Path, judged: Judged) -> None:
    comparison = judged.comparison
    if judged.over_seeds:
        texts = seed_tables.files(judged.over_seeds)
    else:
        texts = {
            "table.md": tables.markdown(comparison),
            "table.tex": tables.latex(comparison),
            "table.csv": tables.csv(comparison),
            "report.md": page.text(comparison, judged.drawn, judged.left_out),
        }
    texts[f"report{PAGE}"] = report_page.html(judged, folder / "figures")
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def _page_alone(out: Path) -> Iterator[Path]:
    """Hand out a folder of which only the page is kept, as ``out``."""
    if out.is_dir():
        raise RunError(f"the page must be written to a file, got {out}, which is a folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with staging(out.parent, out.name) as folder:
        yield folder
        (folder / f"report{PAGE}").replace(out)


def _silent(done: int, total: int, what: str) -> None:
    """Progress that nobody asked for."""
