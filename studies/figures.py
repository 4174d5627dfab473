"""Draws the study's own figures, each from its frame alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from analysis import escape
from analysis.figures import bands, colors, curves, style
from analysis.metrics.definitions import JUDGES

Draw = Callable[[pd.DataFrame, style.Paper], Figure]


def learning(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return the curves of the first metric against simulated time."""
    metric = next(one for one in JUDGES if one.name in frame)
    return curves.draw(frame, paper, x=curves.TIME, y=curves.judge(metric))


def speed_ups(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return a line for each variant: its speed-up at each target, with its interval."""

    def plot(axes: Axes) -> None:
        for label, look in colors.looks(frame).items():
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
        axes.axhline(1.0, color=colors.GREY, linewidth=0.7)
        axes.set(xlabel="Target accuracy (%)", ylabel="Speed-up (×)", yscale="log")
        _plain_ratios(axes, "y")
        axes.grid()

    note = f"Mean and 95 % interval of {frame['num_seeds'].min()} seeds"
    return style.one_panel(paper, plot, note)


def decomposition(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return a mark for each variant and target: seconds a round against rounds, as ratios.

    On the curve their product is 1, which takes as long as the baseline.
    """

    def plot(axes: Axes) -> None:
        for label, look in colors.looks(frame).items():
            own = frame[frame["label"] == label].sort_values("rounds_ratio")
            axes.plot(
                own["round_s_ratio"],
                own["rounds_ratio"],
                color=look.color,
                linestyle="none",
                marker=look.marker,
                label=escape.figure(label),
            )
            # Words stand on either side in turn, so that those of marks above each other do not
            # overlap.
            for k, row in enumerate(own.to_dict("records")):
                axes.annotate(
                    f"{100 * row['target']:.0f} %",
                    (row["round_s_ratio"], row["rounds_ratio"]),
                    textcoords="offset points",
                    xytext=(-7 if k % 2 else 7, 0),
                    ha="right" if k % 2 else "left",
                    va="center",
                    fontsize=7,
                    color=look.color,
                )
        ends = np.array([*frame["round_s_ratio"], *frame["rounds_ratio"]])
        low, high = 0.9 * min(ends.min(), 1), 1.12 * max(ends.max(), 1)
        across = np.linspace(low, high, 50)
        axes.plot(across, 1 / across, color=colors.GREY, linewidth=0.7)
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
        axes.set(xlabel="Seconds a round (× the baseline's)", ylabel="Rounds (×)")
        _plain_ratios(axes, "x")
        _plain_ratios(axes, "y")
        axes.grid()

    return style.one_panel(paper, plot, "To each target; on the curve as long as the baseline")


def menu(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return a line for each way of keeping activations: memory against seconds, by depth."""

    def plot(axes: Axes) -> None:
        low, high = frame["budget_low_bytes"].iloc[0], frame["budget_high_bytes"].iloc[0]
        axes.axvspan(low / 1e9, high / 1e9, color=colors.LIGHT_GREY, lw=0)
        kinds = colors.palette(frame["activations"])
        for (kind, color), marker in zip(kinds.items(), colors.MARKERS, strict=False):
            own = frame[frame["activations"] == kind]
            axes.plot(
                own["memory_bytes"] / 1e9, own["step_s"], color=color, marker=marker, label=kind
            )
        axes.set(xlabel="Peak memory (GB)", ylabel="Seconds a step")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid()

    note = f"Depth 1 to {frame['depth'].max()}; shaded: the budgets of such boards"
    return style.one_panel(paper, plot, note)


def bound(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return the curve of what depth costs a step, with a mark where each variant lies on it."""

    def plot(axes: Axes) -> None:
        curve = frame.drop_duplicates("depth")
        axes.plot(curve["depth"], curve["over_depth_1"], color=colors.GREY, linewidth=0.7)
        marked = frame.drop_duplicates("label").set_index("label")
        for label, look in colors.looks(frame).items():
            axes.plot(
                marked["mean_depth"][label],
                marked["mean_over_depth_1"][label],
                color=look.color,
                marker=look.marker,
                linestyle="none",
                label=escape.figure(label),
            )
        axes.set(xlabel="Depth d: tunable blocks from the output", ylabel="T(d) / T(1)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid()

    return style.one_panel(paper, plot)


def devices(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return for each kind of device a line a variant: how long it is busy, then how long it waits.

    The mark stands where the work ends, the thin line where the wait does.
    """
    kinds = list(dict.fromkeys(frame["profile"]))
    looks = colors.looks(frame)
    # The lines of one kind of device must not reach those of the next.
    step, kind_in = min(0.24, 0.85 / len(looks)), max(0.23, 0.04 + 0.075 * len(looks))
    drawn = style.figure(paper.column_in, 0.45 + kind_in * len(kinds))
    axes = drawn.subplots()
    for k, (label, look) in enumerate(looks.items()):
        own = frame[frame["label"] == label]
        at = np.array([kinds.index(kind) for kind in own["profile"]])
        at = at + step * (k - (len(looks) - 1) / 2)
        done = own["took_s"] + own["waiting_s"]
        axes.hlines(at, 0, own["took_s"], color=look.color, linewidth=1.6)
        axes.hlines(at, own["took_s"], done, color=look.color, linewidth=0.5)
        axes.plot(
            own["took_s"],
            at,
            color=look.color,
            marker=look.marker,
            linestyle="none",
            label=escape.figure(label),
        )
    axes.set_yticks(range(len(kinds)), [escape.figure(kind) for kind in kinds])
    axes.set(xlabel="Seconds a round: at work (thick), waiting (thin)")
    axes.set_xlim(left=0)
    axes.invert_yaxis()
    axes.grid(axis="x")
    style.legend_above(drawn, style.labelled(axes))
    return drawn


def _plain_ratios(axes: Axes, which: str) -> None:
    """Write the ratios of a logarithmic axis as they are, and not as powers of ten."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 3.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.set_minor_formatter(NullFormatter())


def coverage(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return a line for each variant: the share of examples that trained each block."""

    def plot(axes: Axes) -> None:
        for label, look in colors.looks(frame).items():
            own = frame[frame["label"] == label].assign(share=lambda rows: 100 * rows["share"])
            curve = bands.curve(own, x="block", y="share", band=paper.band)
            bands.plot(axes, curve, look, label=label, size=(1.0, 1.0))
        axes.set(xlabel="Block, from the input", ylabel="Examples that trained it (%)")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(left=0.5)
        axes.grid()

    return style.one_panel(paper, plot, bands.note(frame, paper.band))
