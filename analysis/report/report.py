"""Writes a report: figures, the table in every format, and one page that explains them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from analysis import figures
from analysis.metrics.side_by_side import Studies, studies_of
from analysis.metrics.study import Study, study_of
from analysis.report.data import ReportData
from analysis.report.formats import table_files
from analysis.report.pages import (
    is_too_large,
    to_html_index,
    to_html_page,
    to_markdown_index,
    to_markdown_page,
)
from analysis.runs.blocks import ALONE, blocks_of, require_comparable
from analysis.runs.choose import chosen
from analysis.runs.files import RunError
from analysis.runs.frames import RunSet, load_variants, open_runs
from simulator.log.disk import staging, writing_into

PAGE = ".html"
Progress = Callable[[int, int, str], None]
"""A function called before each step with the steps done, their number, and the next one's name."""


@dataclass(frozen=True, eq=False)
class Report:
    """A report is the studies that it is about, one a block, with the files that were written."""

    studies: Studies
    out: Path  # the folder of the report, or the file of the page
    files: tuple[Path, ...]


def write_report(
    run_paths: Sequence[Path],
    out: Path,
    *,
    target: float | None = None,
    baseline: str | None = None,
    where: Sequence[str] = (),
    progress: Progress = lambda *_: None,
) -> Report:
    """Compare the finished runs in (or directly below) these folders, and write it to ``out``.

    ``out`` is a folder, or a name ending in .html for the page alone. ``where`` chooses among the
    runs, by entries such as ``label!=haflq``. Runs that fall into several blocks have a report
    each, in a folder below ``out`` or a page beside it, and ``out`` is the table of all with links
    to them. Files appear only once all of them exist; other files in the folder stay. Raises
    RunError on runs that cannot be read or compared, on a target or baseline that cannot be, and
    where ``out`` cannot be written.
    """
    is_page = out.suffix == PAGE
    if not is_page and out.exists() and not out.is_dir():
        raise RunError(f"the report must be written to a folder, got {out}, which is a file")
    if is_page and out.is_dir():
        raise RunError(f"the page must be written to a file, got {out}, which is a folder")
    progress(0, len(figures.FIGURES) + 2, "read runs")
    studies = read_studies(run_paths, where=where, target=target, baseline=baseline)
    try:
        with _page_alone(out) if is_page else writing_into(out, "figures") as folder:
            _write(folder, studies, out, tell=progress)
            names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    except OSError as error:
        raise RunError(f"the report cannot be written to {out}: {error}") from error
    total = len(studies) * len(figures.FIGURES) + 2
    progress(total, total, "done")
    pages = tuple(path.with_name(name) for path, name in ((out, n) for n in _pages(studies, out)))
    return Report(studies, out, pages if is_page else tuple(out / name for name in names))


def read_studies(
    paths: Sequence[Path],
    *,
    target: float | None = None,
    baseline: str | None = None,
    where: Sequence[str] = (),
) -> Studies:
    """Return the study of each block of the finished runs in these folders, as figures need it.

    Runs that have not ended or are damaged are named in ``left_out``. Raises RunError where no run
    is left, runs of a block met unlike conditions, or on a target or baseline that cannot be.
    """

    def whole_study(found: RunSet, base: str | None) -> Study:
        require_comparable(found)
        runs, damaged = load_variants(found)
        left_out = (*found.left_out, *damaged)
        return study_of(runs, target=target, baseline=base, left_out=left_out)

    return studies_of(blocks_of(chosen(open_runs(paths), where)), whole_study, baseline)


def _write(folder: Path, studies: Studies, out: Path, *, tell: Progress) -> None:
    """Write the report of each block into a folder, and above several the table of all."""
    is_page = out.suffix == PAGE
    draw = _draw_for_page if is_page else figures.write
    total, step = len(studies) * len(figures.FIGURES) + 2, 0
    for block, study in studies.items():
        inner = folder / block.folder
        (inner / "figures").mkdir(parents=True)
        drawn = []
        for spec in figures.figures_of(study.metric):
            step += 1
            tell(step, total, " ".join(filter(None, ["draw", spec.name, block.heading])))
            if draw(spec, study, inner / "figures"):
                drawn.append(spec)
        _write_texts(inner, ReportData(study, drawn, block.heading))
    tell(total - 1, total, "write tables")
    if len(studies) == 1:
        return
    if is_page:
        links = dict(zip(studies, _pages(studies, out)[1:], strict=True))
    else:
        links = {block: f"{block.folder}/report{PAGE}" for block in studies}
    _put(
        folder,
        {
            **table_files(studies),
            "report.md": to_markdown_index(studies, links),
            f"report{PAGE}": to_html_index(studies, links),
        },
    )


def _pages(studies: Studies, out: Path) -> list[str]:
    """Return the name of the page, and of those of the blocks where there are several."""
    blocks = [f"{out.stem}-{block.folder}{PAGE}" for block in studies if block.folder]
    return [out.name, *blocks]


def _draw_for_page(spec: figures.FigureSpec, study: Study, folder: Path) -> list[Path]:
    """Write the figure as the page holds it, in a quarter of the time of all formats."""
    written = figures.write(spec, study, folder, formats=("svg",))
    if written and is_too_large(folder / f"{spec.name}.svg"):
        written += figures.write(spec, study, folder, formats=("png",))
    return written


def _write_texts(folder: Path, report: ReportData) -> None:
    _put(
        folder,
        {
            **table_files({ALONE: report.study}),
            "report.md": to_markdown_page(report),
            f"report{PAGE}": to_html_page(report, folder / "figures"),
        },
    )


def _put(folder: Path, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def _page_alone(out: Path) -> Iterator[Path]:
    """Yield a folder of which only the page is kept, as ``out``, and the pages of its blocks."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with staging(out.parent, out.name) as folder:
        yield folder
        for page in sorted(folder.glob(f"*/report{PAGE}")):
            page.replace(out.with_name(f"{out.stem}-{page.parent.name}{PAGE}"))
        (folder / f"report{PAGE}").replace(out)
