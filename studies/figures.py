"""Draws the study's own figures, each from its frame alone."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import escape
from analysis.figures import bands, curves, style
from devices.tasks.classification import ACCURACY

Draw = Callable[[pd.DataFrame, style.Paper], Figure]


def accuracy(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return the curves of accuracy against simulated time."""
    return curves.draw(frame, paper, x=curves.TIME, y=curves.judge(ACCURACY))


def speed_ups(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return a line for each variant: its speed-up at each target, with its interval."""

    def plot(axes: Axes) -> None:
        for label, look in style.looks(frame).items():
            own = frame[frame["label"] == label]
            axes.plot(
                100 * own["target"],
                own["speed_up"],
                color=look.color,
                marker=look.marker,
                linestyle=look.dash,
                label=escape.figure(label),
            )
            axes.fill_between(
                100 * own["target"], own["low"], own["high"], color=look.color, alpha=0.16, lw=0
            )
        axes.axhline(1.0, color=style.GREY, linewidth=0.7)
        axes.set(xlabel="Target accuracy (%)", ylabel="Speed-up (×)")
        axes.grid()

    return style.one_panel(paper, plot)


def coverage(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return a line for each variant: the share of examples that trained each block."""

    def plot(axes: Axes) -> None:
        for label, look in style.looks(frame).items():
            own = frame[frame["label"] == label].assign(share=lambda rows: 100 * rows["share"])
            curve = bands.curve(own, x="block", y="share", band=paper.band)
            bands.plot(axes, curve, look, label=label, size=(1.0, 1.0))
        axes.set(xlabel="Block, from the input", ylabel="Examples that trained it (%)")
        axes.set_ylim(bottom=0)
        axes.set_xticks(sorted(frame["block"].unique()))
        axes.grid()

    return style.one_panel(paper, plot, bands.note(frame, paper.band))
