"""Draws performance profiles: how often a variant is within a factor of the fastest to a target.

A workload is one target under the conditions of one seed. The profile of a variant at tau is the
share of workloads that it ends within tau times the time of the fastest variant there (Dolan and
Moré, 2002; the rule of AlgoPerf: Dahl et al., arXiv 2306.07179). A workload that a variant does not
end counts against it at every tau; one that no variant ends is left out.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import escape
from analysis.figures import colors, lines, style
from analysis.figures.rows import of_runs
from analysis.metrics.study import Study
from analysis.runs.load import Run

MOST = 4.0
"""The largest factor that is drawn and scored, as in AlgoPerf."""


def frame(study: Study) -> pd.DataFrame:
    """Return one row for each run and target: the seconds to it, NaN where it is not reached.

    Targets that no run of a seed reaches are left out.
    """
    studies = [one for one in (study, *study.others) if one.target.value is not None]
    if not studies:
        return pd.DataFrame()

    def times(run: Run) -> pd.DataFrame:
        rows = [study.run_row(run) if one is study else one.run_row(run) for one in studies]
        return pd.DataFrame(
            {
                "target": [one.target.value for one in studies],
                "time_to_target_s": [float(row["time_to_target_s"]) for row in rows],
            }
        )

    found = of_runs(study.runs, times)
    best_s = found.groupby(["seed", "target"])["time_to_target_s"].transform("min")
    return found[best_s.notna()].reset_index(drop=True)


def factors(frame: pd.DataFrame) -> pd.Series[float]:
    """Return each row's time over the shortest of its workload; infinite where it did not end."""
    best_s = frame.groupby(["seed", "target"])["time_to_target_s"].transform("min")
    return (frame["time_to_target_s"] / best_s).fillna(math.inf)


def score(own: pd.Series[float]) -> float:
    """Return the mean of a profile over tau from 1 to ``MOST``, in [0, 1]: AlgoPerf's score."""
    reached = np.clip((MOST - own.to_numpy()) / (MOST - 1), 0.0, 1.0)
    return float(reached.mean())


def plot(frame: pd.DataFrame, axes: Axes) -> None:
    """Draw a staircase for each label, with its score in the legend."""
    every = frame.assign(factor=factors(frame))
    for label, look in colors.looks(frame).items():
        own = every.loc[every["label"] == label, "factor"].sort_values()
        within = own[own <= MOST]
        at = [1.0, *within, MOST]
        share = 100 * np.array([0, *range(1, len(within) + 1), len(within)]) / len(own)
        lines.staircase(axes, at, share, look, label=f"{escape.figure(label)} ({score(own):.2f})")
    axes.set(xlabel="Times as long as the fastest (τ)", ylabel="Targets reached within τ (%)")
    axes.set_xlim(1, MOST)
    axes.set_ylim(0, 103)
    lines.tell_apart(axes)
    axes.grid()


def draw(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return a narrow figure."""
    num = len(frame.drop_duplicates(["seed", "target"]))
    return style.one_panel(
        paper, lambda axes: plot(frame, axes), f"Score in brackets; {num} targets of all seeds"
    )
