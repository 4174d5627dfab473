"""Gives all figures one look: sizes, fonts, legends and one colour for each strategy."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine, LayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, ScalarFormatter

TEX_POINTS = 72.27  # to an inch; TeX's point is not the 1/72 inch of PDF
PNG_DPI = 300
MAX_MARKS = 12
MAX_HEIGHT_IN = 9.0  # of a page
LINE_IN = 0.155  # of a legend, in letters of 7.5 pt
FORMATS = ("pdf", "png", "svg")
NUM_SAMPLES = 200  # places at which lines are held against each other and against words
COVERED_SHARE = 0.004  # of an axis: two lines this near to each other look like one

Dash = tuple[float, tuple[float, ...]]
"""Offset, then points drawn and left out in turn, as matplotlib takes it."""

# Okabe and Ito's palette without its yellow, which is faint on white, three of Tol's muted set and
# two more. To any colour-blind eye two of them are well apart in CIELAB, or their strategies have
# other marks and dashes.
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, ORANGE, BLACK, WINE, OLIVE = "#56B4E9", "#E69F00", "#000000", "#882255", "#999933"
SIENNA, VIOLET, FOREST = "#5C3310", "#5A3FC0", "#117733"
PLUM, LAVENDER, LIME, ELECTRIC = "#3C0059", "#8D79F2", "#A8D890", "#9000F0"
ROSE, INDIGO, PINE, MOSS = "#D8C0C0", "#330088", "#113322", "#78A860"
GREY, PALE, LIGHT_GREY, DARK_GREY = "#8A8A8A", "#CBCBCB", "#E4E4E4", "#555555"
SLATE, RED = "#4C6A92", "#D3001B"  # of no strategy: for parts, phases and OOM
COLORS = {
    "fedlora": BLACK,
    "fedquad": BLUE,
    "haflq": VERMILLION,
    "legend": GREEN,
    "hetlora": PURPLE,
    "zeropad": SKY,
    "flexlora": ORANGE,
    "layersel": WINE,
    "fah-qlora": OLIVE,
    "fedra": SIENNA,
    "inclusivefl": VIOLET,
    "ffa-lora": GREY,
    "flora": FOREST,
    "fedex-lora": PLUM,
    "lora-fair": LAVENDER,
    "rolora": LIME,
    "fedsa-lora": ELECTRIC,
    "fed-hello": ROSE,
    "scaffold": INDIGO,
    "local-only": PINE,
    "centralized": MOSS,
}
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, SKY, ORANGE, BLACK, GREY)
"""Colours of what is no strategy: links, files and tables, in the order that they are named."""
MARKERS = "osD^vPX<>hp*"
DASHES: tuple[Dash, ...] = (
    (0, ()),
    (0, (5, 1.5)),
    (0, (1.2, 1.2)),
    (0, (5, 1.3, 1.2, 1.3)),
    (0, (9, 2)),
    (0, (4, 1.2, 1.2, 1.2, 1.2, 1.2)),
)
NUM_LOOKS = 12  # of one colour: after so many, marker and dashes come round together
TINTS = (0.0, 0.45, 0.7)  # how much white the first, second and third run of a strategy gets
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


class Look(NamedTuple):
    """A look is how one run is drawn in every figure."""

    color: str
    marker: str
    dash: Dash


@contextmanager
def context() -> Iterator[None]:
    """Set the style, and nothing of the user's own, while figures are built and saved."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC)
        yield


def shades(pairs: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Return for each label how many labels of its strategy come before it.

    The label that is the strategy's own name comes first.
    """
    numbers: dict[str, int] = {}
    seen: dict[str, int] = {}
    for label, strategy in sorted(dict.fromkeys(pairs), key=lambda pair: pair[0] != pair[1]):
        numbers[label] = seen[strategy] = seen.get(strategy, -1) + 1
    return numbers


def looks(frame: pd.DataFrame) -> Mapping[str, Look]:
    """Return the look of each label, by the label, strategy and shade of a figure's frame.

    Without the column of shades, labels of one strategy are told apart in the order that they come.
    Shade 0 has the look of its strategy, whatever else the frame holds. Further ones are tints of
    its colour, with other marks and dashes.
    """
    chosen: dict[str, Look] = {}
    rows = frame.filter(["label", "strategy", "shade"]).drop_duplicates("label")
    if "shade" not in rows:
        numbers = shades(zip(rows["label"], rows["strategy"], strict=True))
        rows = rows.assign(shade=rows["label"].map(numbers))
    # Strategies of the project first: no name that is not may take the look of one of them.
    first = rows.sort_values("strategy", key=lambda kinds: ~kinds.isin(list(COLORS)), kind="stable")
    for label, strategy, shade in first.itertuples(index=False):
        color, place = _of_strategy(strategy)
        tint = _tinted(color, TINTS[shade % len(TINTS)])
        # Schedulers of the user's own may fall on one look, so the next that is free counts.
        places = range(place + shade, place + shade + NUM_LOOKS)
        look = next((one for at in places if (one := _look(tint, at)) not in chosen.values()), None)
        chosen[label] = look or _look(tint, place + shade)
    return {label: chosen[label] for label in rows["label"]}


def _look(color: str, place: int) -> Look:
    return Look(color, MARKERS[place % len(MARKERS)], DASHES[place % len(DASHES)])


def _of_strategy(kind: str) -> tuple[str, int]:
    """Return the colour of a strategy, and where its marker and dashes stand in their lists.

    One that is not of this project has those that its name's hash falls on, but never the look of a
    strategy of the project: nothing that stands beside it may move it.
    """
    names = list(COLORS)
    if kind in COLORS:
        return COLORS[kind], names.index(kind)
    number = int.from_bytes(hashlib.sha256(kind.encode()).digest()[:4], "big")
    place, own = divmod(number, len(names))
    color = COLORS[names[own]]
    return color, place + (_look(color, place) == _look(color, own))


def _tinted(color: str, white: float) -> str:
    red, green, blue = (white + (1 - white) * part for part in to_rgb(color))
    return to_hex((red, green, blue))


class _PlainTicks(ScalarFormatter):
    """Tick labels as plain text: as formulas they would take a third of the time of a figure.

    A power of ten beside the axis, where there is one, stays a formula.
    """

    def __call__(self, x: float, pos: int | None = None) -> str:
        return super().__call__(x, pos).removeprefix("$\\mathdefault{").removesuffix("}$")


class _Layout(ConstrainedLayoutEngine):
    """The layout of a figure, before which its linear axes get tick labels of plain text."""

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


def palette(names: Iterable[str]) -> dict[str, str]:
    """Return the colour of each name; after eight they begin anew."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(dict.fromkeys(names))}


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


def tell_apart(axes: Axes) -> None:
    """Widen each line that a later one covers, so that it shows on both sides of that one."""
    lines = axes.get_lines()
    curves = [_sampled(axes, line) for line in lines]
    (bottom, top), width = axes.get_ylim(), mpl.rcParams["lines.linewidth"]
    for place, (line, curve) in enumerate(zip(lines, curves, strict=True)):
        covers = [
            np.mean(np.abs(curve - other) < COVERED_SHARE * abs(top - bottom))
            for other in curves[place + 1 :]
        ]
        num_covers = sum(share > 0.25 for share in covers)
        line.set_linewidth(width + 0.9 * min(num_covers, 3))


def _sampled(axes: Axes, line: Line2D) -> npt.NDArray[np.float64]:
    """Return the heights of a line at places of its axes, NaN where it is not."""
    x, y = (np.asarray(part, dtype=float) for part in line.get_data(orig=False))
    if len(x) == 0:
        return np.full(NUM_SAMPLES, math.nan)
    spaced = np.geomspace if axes.get_xscale() == "log" else np.linspace
    at = spaced(*axes.get_xlim(), num=NUM_SAMPLES)
    if line.get_drawstyle() == "steps-post":
        heights = y[np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(y) - 1)]
    else:
        heights = np.interp(at, x, y)
    return np.where((at >= x.min()) & (at <= x.max()), heights, math.nan)


def name_level(axes: Axes, level: float, words: str) -> None:
    """Draw a thin level line, and its name where the fewest lines of the axes pass."""
    named = axes.get_legend_handles_labels()[1]
    axes.axhline(level, color=GREY, linewidth=0.7, linestyle=(0, (4, 2)), zorder=1)
    width_in = axes.get_position().width * float(axes.figure.bbox.width) / axes.figure.dpi
    span = 0.047 * len(words) / width_in  # of the axes: 7 pt letters
    bottom, top = axes.get_ylim()
    if level > top:  # a target far above all curves: its name would lie outside the panel
        top = bottom + 1.15 * (level - bottom)
        axes.set_ylim(bottom, top)
    high = 0.13 / 1.5 * (top - bottom)  # a line of text in a panel
    curves = [_sampled(axes, line) for line in axes.get_lines() if line.get_label() in named]
    at = np.linspace(0.0, 1.0, NUM_SAMPLES)

    def hits(side: str, sign: int) -> float:
        is_there = at <= span if side == "left" else at >= 1 - span
        low, up = sorted((level, level + sign * high))
        if low < bottom or up > top:
            return math.inf
        return float(sum(np.sum((c[is_there] >= low) & (c[is_there] <= up)) for c in curves))

    places = [("left", 1), ("right", 1), ("right", -1), ("left", -1)]
    side, sign = min(places, key=lambda place: hits(*place))
    axes.annotate(
        words,
        (0.0 if side == "left" else 1.0, level),
        xycoords=axes.get_yaxis_transform(),
        xytext=(2 if side == "left" else -2, 2.5 * sign),
        textcoords="offset points",
        ha="left" if side == "left" else "right",
        va="bottom" if sign > 0 else "top",
        fontsize=7,
        color=DARK_GREY,
    )


def labelled(axes: Axes) -> list[Artist]:
    """Return what was plotted there under a name."""
    return list(axes.get_legend_handles_labels()[0])


def mark_every(num_points: int) -> int:
    """Return how many points lie from mark to mark: a short line has all of them marked."""
    return max(1, -(-num_points // MAX_MARKS))


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
    to build, and with them the names that SVG gives to clips: places are rounded.
    """
    layout.execute(figure)
    figure.set_layout_engine(None)  # "none" would have each format drawn twice
    for axes in figure.axes:
        left, bottom, width, height = axes.get_position().bounds
        axes.set_position((round(left, 6), round(bottom, 6), round(width, 6), round(height, 6)))
    for text in figure.texts:
        x, y = text.get_position()
        text.set_position((round(x, 6), round(y, 6)))
