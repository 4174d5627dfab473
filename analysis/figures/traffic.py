"""Draws the bytes over the network so far, down and up, against simulated time."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures import bands, style
from analysis.figures.curves import DOWNLOAD, TIME, UPLOAD, plot


def draw(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return a wide figure of ``curves.progress``: downloads on the left, uploads on the right."""
    figure = style.figure(paper.page_in, 1.9)
    panels = figure.subplots(1, 2)
    for axes, quantity in zip(panels, (DOWNLOAD, UPLOAD), strict=True):
        plot(frame, axes, x=TIME, y=quantity, band=paper.band)
        axes.set_ylim(bottom=0)
    style.legend_above(figure, style.labelled(panels[0]), bands.note(frame, paper.band))
    return figure
