"""Every figure of a report: one module each, with the frame it plots and how it plots it.

A figure is drawn from its frame alone, so the CSV of that frame is what stands in the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from analysis.comparison import Comparison
from analysis.figures import accuracy, choices, gantt, memory, style, traffic, waiting


class FigureSpec(NamedTuple):
    """One figure: its file name, what it shows, the numbers and the drawing."""

    name: str
    caption: str
    frame: Callable[[Comparison], pd.DataFrame]
    draw: Callable[[pd.DataFrame], Figure]


FIGURES = (
    FigureSpec(
        "accuracy",
        "Accuracy of the global model against simulated time.",
        accuracy.frame,
        accuracy.draw,
    ),
    FigureSpec(
        "waiting",
        "Waiting time per round, mean over the aggregated devices; dashed: mean over the rounds.",
        waiting.frame,
        waiting.draw,
    ),
    FigureSpec(
        "memory",
        "The largest plan that each device was handed: its peak memory by part against the"
        " device's budget. A cross: at least one plan met OOM.",
        memory.frame,
        memory.draw,
    ),
    FigureSpec(
        "traffic",
        "Left: bytes sent up and down so far. Right: accuracy against bytes both ways.",
        traffic.frame,
        traffic.draw,
    ),
    FigureSpec(
        "gantt",
        "What each device does in the first rounds, on one time axis for all strategies. Devices"
        " by rising memory budget from the bottom; blank: not in the round's cohort, or out of it"
        " after OOM.",
        gantt.frame,
        gantt.draw,
    ),
    FigureSpec(
        "choices",
        "What each strategy chose for each device and round. Grey: no plan; red dot: the plan"
        " met OOM.",
        choices.frame,
        choices.draw,
    ),
)


def write(spec: FigureSpec, comparison: Comparison, folder: Path) -> list[Path]:
    """Write the figure as PNG and PDF, and the CSV of what it plots; their paths.

    Nothing is written, and nothing returned, where the runs hold nothing to plot.
    """
    frame = spec.frame(comparison)
    if frame.empty:
        return []
    with style.context():
        figure = spec.draw(frame)
        files = {suffix: style.render(figure, suffix) for suffix in ("png", "pdf")}
    files["csv"] = frame.to_csv(index=False, lineterminator="\n").encode()
    paths = []
    for suffix, content in files.items():
        paths.append(folder / f"{spec.name}.{suffix}")
        paths[-1].write_bytes(content)
    return paths
