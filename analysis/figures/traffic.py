"""Bytes over the network: cumulative against simulated time, and what accuracy they bought."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.comparison import Comparison
from analysis.figures import style
from analysis.units import BYTES, SECONDS, choose


def frame(comparison: Comparison) -> pd.DataFrame:
    """One row a round: bytes of all rounds so far, down, up and both, and the accuracy."""
    parts = [
        pd.DataFrame(
            {
                "label": run.label,
                "strategy": run.strategy,
                "round": run.rounds["round"],
                "closed_s": run.rounds["closed_s"],
                "downloaded_bytes": run.rounds["download_bytes"].cumsum(),
                "uploaded_bytes": run.rounds["upload_bytes"].cumsum(),
                "accuracy": run.rounds["accuracy"],
            }
        ).assign(transferred_bytes=lambda f: f["downloaded_bytes"] + f["uploaded_bytes"])
        for run in comparison.runs
    ]
    return pd.concat(parts, ignore_index=True)


def draw(frame: pd.DataFrame) -> Figure:
    """Left: bytes down (dashed) and up (solid). Right: accuracy against bytes both ways."""
    figure = style.figure(style.PAGE_IN, 2.4)
    left, right = figure.subplots(1, 2)
    time = choose(SECONDS, frame["closed_s"])
    size = choose(BYTES, frame["transferred_bytes"])
    looks = style.looks(frame)
    for label, look in looks.items():
        rows = frame[frame["label"] == label]
        for column, dash in (("uploaded_bytes", "-"), ("downloaded_bytes", "--")):
            left.plot(
                rows["closed_s"] / time.size,
                rows[column] / size.size,
                color=look.color,
                linestyle=dash,
            )
        evaluated = rows[rows["accuracy"].notna()]
        right.plot(
            evaluated["transferred_bytes"] / size.size,
            100 * evaluated["accuracy"],
            color=look.color,
            marker=look.marker,
            markevery=style.mark_every(evaluated),
        )
    left.set(xlabel=f"Simulated time ({time.name})", ylabel=f"Cumulative traffic ({size.name})")
    right.set(xlabel=f"Cumulative traffic, both ways ({size.name})", ylabel="Test accuracy (%)")
    for axes in (left, right):
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid()
    if frame["accuracy"].isna().all():
        right.text(0.5, 0.5, "no run evaluated its model", transform=right.transAxes, ha="center")
        right.set(xticks=[], yticks=[])
    runs = [
        Line2D([], [], color=k.color, marker=k.marker, label=label) for label, k in looks.items()
    ]
    up = Line2D([], [], color=style.GREY, linestyle="-", label="upload (left)")
    down = Line2D([], [], color=style.GREY, linestyle="--", label="download (left)")
    style.legend_above(figure, [*runs, up, down])
    return figure
