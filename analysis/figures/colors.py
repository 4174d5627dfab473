"""Gives each strategy one colour, marker and line style, the same in every figure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pandas as pd
from matplotlib.colors import to_hex, to_rgb

Dash = tuple[float, tuple[float, ...]]
"""A dash pattern of matplotlib: an offset, then lengths drawn and left out in turn, in points."""

# Okabe and Ito's palette without its yellow, which is faint on white, three of Tol's muted set and
# two more. To any colour-blind eye two of them are well apart in CIELAB, or their strategies have
# other marks and dashes.
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, ORANGE, BLACK, WINE, OLIVE = "#56B4E9", "#E69F00", "#000000", "#882255", "#999933"
SIENNA, VIOLET, FOREST = "#5C3310", "#5A3FC0", "#117733"
PLUM, LAVENDER, LIME, ELECTRIC = "#3C0059", "#8D79F2", "#A8D890", "#9000F0"
ROSE, INDIGO, PINE, MOSS = "#D8C0C0", "#330088", "#113322", "#78A860"
GREY, PALE, LIGHT_GREY, DARK_GREY = "#8A8A8A", "#CBCBCB", "#E4E4E4", "#555555"
SLATE, RED = "#4C6A92", "#D3001B"  # no strategy has these: they mark parts, phases and OOM
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
NUM_LOOKS = 12  # looks of one colour; then the same pairs of marker and dashes come again
TINTS = (0.0, 0.45, 0.7)  # how much white the first, second and third run of a strategy gets


class Look(NamedTuple):
    """A look is how one run is drawn in every figure."""

    color: str
    marker: str
    dash: Dash


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
    # Strategies of the project come first, so that no other takes the look of one of them.
    first = rows.sort_values("strategy", key=lambda kinds: ~kinds.isin(list(COLORS)), kind="stable")
    for label, strategy, shade in first.itertuples(index=False):
        color, place = _of_strategy(strategy)
        tint = _tinted(color, TINTS[shade % len(TINTS)])
        # The hashes of the user's own schedulers may give one look, so the next free one is taken.
        places = range(place + shade, place + shade + NUM_LOOKS)
        look = next((one for at in places if (one := _look(tint, at)) not in chosen.values()), None)
        chosen[label] = look or _look(tint, place + shade)
    return {label: chosen[label] for label in rows["label"]}


def _look(color: str, place: int) -> Look:
    return Look(color, MARKERS[place % len(MARKERS)], DASHES[place % len(DASHES)])


def _of_strategy(kind: str) -> tuple[str, int]:
    """Return the colour of a strategy, and where its marker and dashes stand in their lists.

    A strategy that is not of this project has those that the hash of its name gives, but never the
    look of one of the project, so its look does not depend on what else a figure shows.
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


def palette(names: Iterable[str]) -> dict[str, str]:
    """Return the colour of each name; after eight they begin anew."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(dict.fromkeys(names))}
