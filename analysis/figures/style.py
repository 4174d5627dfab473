"""Gives all figures one form: the sizes of papers, fonts, legends and files."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine, LayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, ScalarFormatter

TEX_POINTS = 72.27  # TeX's points in an inch; a point of PDF is 1/72 inch
PNG_DPI = 300
MAX_HEIGHT_IN = 9.0  # the height of a figure that fills a page
LINE_IN = 0.155  # the height of a legend's line, in letters of 7.5 pt
FORMATS = ("pdf", "png", "svg")

RC: Any = {  # matplotlib types the keys as literals or as strings, by its version
    # They ship with matplotlib: every machine draws the same. What the first lacks the second has.
    "font.family": ["STIXGeneral", "DejaVu Sans"],
    "mathtext.fontset": "stix",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.2,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.use_mathtext": True,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "grid.linewidth": 0.4,
    "grid.color": "#D9D9D9",
    "hatch.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.2,
    "pdf.fonttype": 42,  # embedded TrueType: IEEE's PDF check refuses type 3
    "ps.fonttype": 42,
    "svg.hashsalt": "fedclock",
    "figure.dpi": PNG_DPI,  # letters are as wide when the layout is made as when they are drawn
}


@dataclass(frozen=True)
class Paper:
    """A paper says how wide its figures are, and what a band over seeds shows."""

    column_in: float
    page_in: float
    band: str = "range"  # a key of bands.BANDS


# \columnwidth and \textwidth of each LaTeX class. NeurIPS has one column, so a narrow figure takes
# half of it: two stand side by side.
PAPERS = {
    "ieee": Paper(252.0 / TEX_POINTS, 516.0 / TEX_POINTS),
    "acm": Paper(241.147 / TEX_POINTS, 506.295 / TEX_POINTS),
    "neurips": Paper(397.485 / 2 / TEX_POINTS, 397.485 / TEX_POINTS),
}
IEEE = PAPERS["ieee"]


@contextmanager
def context() -> Iterator[None]:
    """Set the style, and nothing of the user's own, while figures are built and saved."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC)
        yield


class _PlainTicks(ScalarFormatter):
    """Plain ticks have labels of plain text, since formulas take a third of a figure's time.

    A power of ten beside the axis, where there is one, stays a formula.
    """

    def __call__(self, x: float, pos: int | None = None) -> str:
        return super().__call__(x, pos).removeprefix("$\\mathdefault{").removesuffix("}$")


class _Layout(ConstrainedLayoutEngine):
    """This layout engine first gives linear axes tick labels of plain text."""

    def execute(self, fig: Figure) -> None:
        for axis in (axis for axes in fig.axes for axis in (axes.xaxis, axes.yaxis)):
            if type(axis.get_major_formatter()) is ScalarFormatter:
                axis.set_major_formatter(_PlainTicks())
        super().execute(fig)


def figure(width_in: float, height_in: float) -> Figure:
    """Return an empty figure, made without pyplot: no window, and nothing shared with others."""
    engine = _Layout(h_pad=0.02, w_pad=0.02, hspace=0.03, wspace=0.03)
    return Figure(figsize=(width_in, height_in), layout=engine)


def one_panel(paper: Paper, plot: Callable[[Axes], None], note: str = "") -> Figure:
    """Return a narrow figure of one panel that ``plot`` fills, below its legend and the note."""
    drawn = figure(paper.column_in, 1.95)
    axes = drawn.subplots()
    plot(axes)
    legend_above(drawn, labelled(axes), note)
    return drawn


def legend_line(color: str, label: str) -> Line2D:
    """Return a line of this colour for a legend."""
    return Line2D([], [], color=color, label=label)


def legend_above(figure: Figure, handles: Sequence[Artist], note: str = "") -> None:
    """Draw a legend of these handles above the panels, where it covers no data, and a note over it.

    The figure grows by its height, so panels keep their size however many entries there are.
    """
    names = [str(handle.get_label()) for handle in handles]
    if not handles and not note:
        return
    rows = _num_rows([0.40 + 0.047 * len(name) for name in names], figure.get_figwidth())
    figure.set_figheight(figure.get_figheight() + LINE_IN * (rows + bool(note)))
    figure.legend(
        handles,
        names,
        loc="outside upper center",
        ncols=-(-len(handles) // rows) if rows else 1,
        borderaxespad=0.1,
        title=note,
        title_fontsize=7.5,
    )


def _num_rows(widths_in: Sequence[float], width_in: float) -> int:
    """Return the fewest rows of a legend whose columns, each as wide as it must be, fit a width."""
    for rows in range(1, len(widths_in)):
        columns = np.array_split(widths_in, -(-len(widths_in) // rows))
        if sum(max(column) for column in columns) <= width_in:
            return rows
    return len(widths_in)


def plain_log_axis(axis: Axis) -> None:
    """Mark a logarithmic axis at 1, 2 and 5 of each decade that it shows, with plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def labelled(axes: Axes) -> list[Artist]:
    """Return what was plotted in these axes with a label."""
    return list(axes.get_legend_handles_labels()[0])


def render(figure: Figure, file_format: str) -> bytes:
    """Return the figure's file: the same bytes every time, hence without a date.

    The layout is made once, so that it is alike in every format, whichever comes first.
    """
    if (layout := figure.get_layout_engine()) is not None:
        _settle(figure, layout)
    dated = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=file_format, dpi=PNG_DPI, metadata=dated[file_format])
    return buffer.getvalue()


def _settle(figure: Figure, layout: LayoutEngine) -> None:
    """Make the layout once, and keep it.

    Its solver goes by the order in which objects lie in memory, so the last bits differ from build
    to build, and with them the names that SVG gives to clips. Hence places are rounded.
    """
    layout.execute(figure)
    figure.set_layout_engine(None)  # "none" would have each format drawn twice
    for axes in figure.axes:
        left, bottom, width, height = axes.get_position().bounds
        axes.set_position((round(left, 6), round(bottom, 6), round(width, 6), round(height, 6)))
    for text in figure.texts:
        x, y = text.get_position()
        text.set_position((round(x, 6), round(y, 6)))
