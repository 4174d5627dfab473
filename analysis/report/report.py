"""Writes a report: figures, the table in every format, and one page that explains them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from analysis import figures
from analysis.metrics.study import Study, require_comparable, study_of
from analysis.report.data import ReportData
from analysis.report.formats import table_files
from analysis.report.pages import is_too_large, to_html_page, to_markdown_page
from analysis.runs.choose import chosen
from analysis.runs.files import RunError
from analysis.runs.frames import load_variants, open_runs
from simulator.log.disk import staging, writing_into

PAGE = ".html"
Progress = Callable[[int, int, str], None]
"""Told before each step: steps done, steps in all, what comes next."""


@dataclass(frozen=True, eq=False)
class Report:
    """A report is the study that it is about, with the files that were written."""

    study: Study
    out: Path  # the folder, or the page
    files: tuple[Path, ...]


def write_report(
    run_paths: Sequence[Path],
    out: Path,
    *,
    target: float | None = None,
    baseline: str | None = None,
    where: Sequence[str] = (),
    progress: Progress | None = None,
) -> Report:
    """Compare the finished runs in (or directly below) these folders, and write it to ``out``.

    ``where`` chooses among them, by entries such as ``label!=haflq``.

    That is a folder, or a name ending in .html for the page alone. Files appear only once all of
    them exist; other files in the folder stay. Raises RunError on runs that cannot be read or
    compared, on a target or baseline that cannot be, and where ``out`` cannot be written.
    """
    is_page = out.suffix == PAGE
    draw = _draw_for_page if is_page else figures.write
    if not is_page and out.exists() and not out.is_dir():
        raise RunError(f"the report must be written to a folder, got {out}, which is a file")
    tell = progress or _silent
    total = len(figures.FIGURES) + 2
    tell(0, total, "read runs")
    study = read_study(run_paths, where=where, target=target, baseline=baseline)
    try:
        with _page_alone(out) if is_page else writing_into(out, "figures") as folder:
            (folder / "figures").mkdir()
            drawn = []
            for step, spec in enumerate(figures.figures_of(study.metric), start=1):
                tell(step, total, f"draw {spec.name}")
                if draw(spec, study, folder / "figures"):
                    drawn.append(spec)
            tell(total - 1, total, "write tables")
            _write_texts(folder, ReportData(study, drawn))
            names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    except OSError as error:
        raise RunError(f"the report cannot be written to {out}: {error}") from error
    files = (out,) if is_page else tuple(out / name for name in names)
    tell(total, total, "done")
    return Report(study, out, files)


def read_study(
    paths: Sequence[Path],
    *,
    target: float | None = None,
    baseline: str | None = None,
    where: Sequence[str] = (),
) -> Study:
    """Return the study of the finished runs in these folders, whole, as figures need them.

    Runs that have not ended or are damaged are named in ``left_out``. Raises RunError where no run
    is left, they met unlike conditions, or on a target or baseline that cannot be.
    """
    found = chosen(open_runs(paths), where)
    require_comparable(found)
    runs, damaged = load_variants(found)
    left_out = (*found.left_out, *damaged)
    return study_of(runs, target=target, baseline=baseline, left_out=left_out)


def _draw_for_page(spec: figures.FigureSpec, study: Study, folder: Path) -> list[Path]:
    """Write the figure as the page holds it, in a quarter of the time of all formats."""
    written = figures.write(spec, study, folder, formats=("svg",))
    if written and is_too_large(folder / f"{spec.name}.svg"):
        written += figures.write(spec, study, folder, formats=("png",))
    return written


def _write_texts(folder: Path, report: ReportData) -> None:
    texts = {
        **table_files(report.study),
        "report.md": to_markdown_page(report),
        f"report{PAGE}": to_html_page(report, folder / "figures"),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def _page_alone(out: Path) -> Iterator[Path]:
    """Yield a folder of which only the page is kept, as ``out``."""
    if out.is_dir():
        raise RunError(f"the page must be written to a file, got {out}, which is a folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with staging(out.parent, out.name) as folder:
        yield folder
        (folder / f"report{PAGE}").replace(out)


def _silent(done: int, total: int, what: str) -> None:
    """Say nothing of the progress."""
