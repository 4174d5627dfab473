"""A report: figures, the table in three formats, and one page that says what they mean."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis import figures, page, tables
from analysis.comparison import Comparison, compare
from analysis.load import RunError, load_finished

Progress = Callable[[int, int, str], None]
"""Told before each step: steps done, steps in all, what comes next."""


@dataclass(frozen=True, eq=False)
class Report:
    """What was compared and what was written."""

    comparison: Comparison
    folder: Path
    files: tuple[Path, ...]
    left_out: tuple[str, ...]  # runs that have not ended, and what to do


def write_report(
    run_paths: Sequence[Path],
    out_dir: Path,
    *,
    target: float | None = None,
    baseline: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compare the finished runs in (or directly below) these folders, and write it to ``out_dir``.

    Files appear there only once all of them exist; other files there stay. Raises RunError on runs
    that cannot be read or compared, on a target or baseline that cannot be, and on an ``out_dir``
    that cannot be written.
    """
    if out_dir.exists() and not out_dir.is_dir():
        raise RunError(f"the report must be written to a folder, got {out_dir}, which is a file")
    tell = progress or _silent
    total = len(figures.FIGURES) + 2
    tell(0, total, "read runs")
    runs, left_out = load_finished(run_paths)
    comparison = compare(runs, target=target, baseline=baseline)
    partial = out_dir.parent / f".{out_dir.name}.partial-{os.getpid()}"
    try:
        (partial / "figures").mkdir(parents=True)
        drawn = []
        for step, spec in enumerate(figures.FIGURES, start=1):
            tell(step, total, f"draw {spec.name}")
            if figures.write(spec, comparison, partial / "figures"):
                drawn.append(spec)
        tell(total - 1, total, "write tables")
        _write_texts(partial, comparison, page.text(comparison, drawn, left_out))
        files = _publish(partial, out_dir)
    except OSError as error:
        raise RunError(f"the report cannot be written to {out_dir}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    tell(total, total, "done")
    return Report(comparison, out_dir, files, tuple(left_out))


def _write_texts(folder: Path, comparison: Comparison, report: str) -> None:
    texts = {
        "table.md": tables.markdown(comparison),
        "table.tex": tables.latex(comparison),
        "table.csv": tables.csv(comparison),
        "report.md": report,
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


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
