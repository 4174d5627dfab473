"""A report: figures, the table in every format, and one page that says what they mean."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis import figures
from analysis.metrics.study import Study, require_comparable, study_of
from analysis.report.data import ReportData
from analysis.report.formats import table_files
from analysis.report.pages import to_html_page, to_markdown_page
from analysis.runs.files import RunError
from analysis.runs.frames import load_variants, open_runs

PAGE = ".html"
Progress = Callable[[int, int, str], None]
"""Told before each step: steps done, steps in all, what comes next."""


@dataclass(frozen=True, eq=False)
class Report:
    """The study that was reported on, and the files that were written."""

    study: Study
    out: Path  # the folder, or the page
    files: tuple[Path, ...]


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
    study = read_study(run_paths, target=target, baseline=baseline)
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        (partial / "figures").mkdir(parents=True)
        drawn = []
        for step, spec in enumerate(figures.FIGURES, start=1):
            tell(step, total, f"draw {spec.name}")
            if figures.write(spec, study, partial / "figures"):
                drawn.append(spec)
        tell(total - 1, total, "write tables")
        _write_texts(partial, ReportData(study, drawn))
        files = _publish_page(partial, out) if is_page else _publish(partial, out)
    except OSError as error:
        raise RunError(f"the report cannot be written to {out}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    tell(total, total, "done")
    return Report(study, out, files)


def read_study(
    paths: Sequence[Path], *, target: float | None = None, baseline: str | None = None
) -> Study:
    """Return the study of the finished runs in these folders, whole, as figures need them.

    Runs that have not ended or are damaged are named in ``left_out``. Raises RunError where no run
    is left, they met unlike conditions, or on a target or baseline that cannot be.
    """
    found = open_runs(paths)
    require_comparable(found)
    runs, damaged = load_variants(found)
    left_out = (*found.left_out, *damaged)
    return study_of(runs, target=target, baseline=baseline, left_out=left_out)


def _write_texts(folder: Path, report: ReportData) -> None:
    texts = {
        **table_files(report.study),
        "report.md": to_markdown_page(report),
        f"report{PAGE}": to_html_page(report, folder / "figures"),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def _publish_page(partial: Path, out: Path) -> tuple[Path, ...]:
    """Move the page alone to its place."""
    if out.is_dir():
        raise RunError(f"the page must be written to a file, got {out}, which is a folder")
    (partial / f"report{PAGE}").replace(out)
    return (out,)


def _publish(partial: Path, out_dir: Path) -> tuple[Path, ...]:
    """Move a complete folder to its place, or its files into the folder that is there."""
    names = sorted(path.relative_to(partial) for path in partial.rglob("*") if path.is_file())
    if not out_dir.exists():
        partial.rename(out_dir)
    else:
        for name in names:
            (out_dir / name).parent.mkdir(exist_ok=True)
            (partial / name).replace(out_dir / name)
    return tuple(out_dir / name for name in names)


def _silent(done: int, total: int, what: str) -> None:
    """Progress that nobody asked for."""
