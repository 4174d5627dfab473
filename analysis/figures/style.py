"""The look that all figures share: sizes, fonts and one colour for each strategy."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib as mpl
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

COLUMN_IN = 3.5  # one column of an IEEE page
PAGE_IN = 7.16  # both columns
PNG_DPI = 300
MAX_MARKS = 20

# Okabe and Ito's palette without its yellow, which is faint on white.
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, ORANGE, BLACK = "#56B4E9", "#E69F00", "#000000"
GREY, LIGHT_GREY = "#8A8A8A", "#E4E4E4"
SLATE, RED = "#4C6A92", "#D3001B"  # of no strategy: for parts, phases and OOM
COLORS = {
    "fedlora": BLACK,
    "fedquad": BLUE,
    "haflq": VERMILLION,
    "legend": GREEN,
    "hetlora": PURPLE,
    "flora": SKY,
    "flexlora": ORANGE,
}
MARKERS = "osD^vP*X"
TINTS = (0.0, 0.45, 0.7)  # how much white the first, second and third run of a strategy gets
RC: Any = {  # matplotlib types the keys as literals or as strings, by its version
    "font.family": "STIXGeneral",  # ships with matplotlib, so every machine draws the same
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
    "figure.dpi": 100,
}


class Look(NamedTuple):
    """How one run is drawn in every figure."""

    color: str
    marker: str


@contextmanager
def context() -> Iterator[None]:
    """The style and nothing of the user's own, while it lasts: to build and save figures in."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC)
        yield


def looks(frame: pd.DataFrame) -> Mapping[str, Look]:
    """Label -> look, for the (label, strategy) pairs of a figure's frame.

    A strategy has one colour and marker; its second and third run are tints of it. A strategy
    without a colour of its own takes, in order of name, one that no other here uses.
    """
    pairs = list(dict.fromkeys(zip(frame["label"], frame["strategy"], strict=True)))
    strategies = sorted({strategy for _, strategy in pairs})
    free = [c for kind, c in COLORS.items() if kind not in strategies]
    unknown = [strategy for strategy in strategies if strategy not in COLORS]
    palette = COLORS | {
        strategy: (free or [GREY])[i % max(1, len(free))] for i, strategy in enumerate(unknown)
    }
    names = [*COLORS, *unknown]
    chosen: dict[str, Look] = {}
    seen: dict[str, int] = {}
    for label, strategy in pairs:
        nth = seen[strategy] = seen.get(strategy, -1) + 1
        marker = MARKERS[names.index(strategy) % len(MARKERS)]
        chosen[label] = Look(_tinted(palette[strategy], TINTS[nth % len(TINTS)]), marker)
    return chosen


def _tinted(color: str, white: float) -> str:
    red, green, blue = (white + (1 - white) * part for part in to_rgb(color))
    return to_hex((red, green, blue))


def figure(width_in: float, height_in: float) -> Figure:
    """An empty figure, drawn without pyplot: no window and nothing shared between figures."""
    engine = ConstrainedLayoutEngine(h_pad=0.02, w_pad=0.02, hspace=0.03, wspace=0.03)
    return Figure(figsize=(width_in, height_in), layout=engine)


def legend_above(figure: Figure, handles: Sequence[Artist]) -> None:
    """A legend of these handles above the panels, where it covers no data."""
    names = [str(handle.get_label()) for handle in handles]
    entry_in = 0.40 + 0.047 * max(len(name) for name in names)  # a handle, then 7.5 pt letters
    rows = -(-len(handles) // max(1, int(figure.get_figwidth() / entry_in)))
    figure.legend(
        handles,
        names,
        loc="outside upper center",
        ncols=-(-len(handles) // rows),
        borderaxespad=0.1,
    )


def mark_every(rows: pd.DataFrame) -> int:
    """Of a line through these rows, every how many carry a mark: all of a few, some of many."""
    return -(-len(rows) // MAX_MARKS)


def render(figure: Figure, file_format: str) -> bytes:
    """The figure's file: the same bytes every time, hence without a date."""
    dated = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=file_format, dpi=PNG_DPI, metadata=dated[file_format])
    return buffer.getvalue()
