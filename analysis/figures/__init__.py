"""Lists every figure: the frame that it plots, how it plots it, and its caption.

A figure is drawn from its frame alone, so the CSV of that frame is what stands in the picture. To
add one, write a module with a frame and a drawing, and name them here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures import (
    ablation,
    choices,
    conditions,
    curves,
    fleet_conditions,
    gantt,
    memory,
    own_tests,
    participation,
    performance_profile,
    round_time,
    style,
    target,
    traffic,
    waiting,
)
from analysis.metrics.run_metrics import is_timed
from analysis.metrics.study import Study
from analysis.runs.load import Run
from analysis.runs.names import with_names
from devices.tasks.registry import UNNAMED_METRIC
from devices.tasks.task import Metric

Draw = Callable[[pd.DataFrame, style.Paper], Figure]


def has_plans(run: Run) -> bool:
    """Return True for a run in which devices did something, which those of one place is not."""
    return len(run.clients) > 0


def has_time(run: Run) -> bool:
    """Return True for a run that was charged time."""
    return is_timed(run.rounds)


class FigureSpec(NamedTuple):
    """A figure has a file name, a caption, a frame of numbers and a drawing of the frame.

    It shows the runs that ``shows`` is true of.
    """

    name: str
    caption: str
    frame: Callable[[Study], pd.DataFrame]
    draw: Draw
    shows: Callable[[Run], bool] = has_plans

    def of(self, study: Study) -> pd.DataFrame:
        """Return the frame of the runs that are shown; empty where there are none."""
        shown = tuple(filter(self.shows, study.runs))
        return self.frame(replace(study, runs=shown)) if shown else pd.DataFrame()


def _curve(name: str, caption: str, x: curves.Quantity, y: curves.Quantity) -> FigureSpec:
    by_x = {curves.TIME: has_time, curves.ENERGY: has_time, curves.TRAFFIC: has_plans}
    draw = partial(curves.draw, x=x, y=y)
    return FigureSpec(name, caption, curves.frame, draw, by_x.get(x, _any))


def _any(run: Run) -> bool:
    return True


def figures_of(metric: Metric) -> tuple[FigureSpec, ...]:
    """Return the figures of runs that this metric judges; files of its curves bear its name."""
    name, title, judge = metric.name.replace("_", "-"), metric.title, curves.judge(metric)
    return (
        _curve(
            name,
            f"{title} of the global model against simulated time.",
            curves.TIME,
            judge,
        ),
        _curve(
            f"{name}-rounds",
            f"{title} of the global model against rounds.",
            curves.ROUND,
            judge,
        ),
        _curve(
            "loss",
            "Test loss of the global model against simulated time.",
            curves.TIME,
            curves.LOSS,
        ),
        _curve(
            "loss-rounds",
            "Test loss of the global model against rounds.",
            curves.ROUND,
            curves.LOSS,
        ),
        FigureSpec(
            "time-to-target",
            f"Simulated time to the target {title.lower()}, the median of the seeds. In brackets:"
            " how many runs reached it, where not all did. Hatched: the others leave no more than a"
            " bound of the median from below. A band that ends in an arrow is not bounded.",
            target.frame,
            partial(target.draw, metric=metric),
        ),
        FigureSpec(
            "performance-profile",
            "Share of the targets that a variant reaches within so many times the time of the"
            " fastest one, over all targets and seeds; in brackets the mean over the axis, which is"
            " AlgoPerf's score.",
            performance_profile.frame,
            performance_profile.draw,
        ),
        FigureSpec(
            "waiting",
            "Mean wait per round of the aggregated devices, for the last one of their round.",
            waiting.mean_frame,
            waiting.draw_mean,
        ),
        FigureSpec(
            "waiting-cdf",
            "How long aggregated devices waited for the end of their round: share of waits at most"
            " as long.",
            waiting.wait_frame,
            waiting.draw_cdf,
        ),
        FigureSpec(
            "waiting-rounds",
            "Waiting time round by round, mean over the aggregated devices.",
            waiting.round_frame,
            waiting.draw_rounds,
        ),
        FigureSpec(
            "round-time",
            "Where the time of a plan goes: mean over all dispatched plans. Lost work: the time of"
            " plans whose update was not aggregated.",
            round_time.time_frame,
            round_time.draw_time,
        ),
        FigureSpec(
            "gantt",
            "What each device does in the first rounds, on one time axis for all strategies."
            " Devices by rising memory budget from the bottom; blank: not in the round's cohort, or"
            " out of it.",
            gantt.frame,
            gantt.draw,
        ),
        FigureSpec(
            "memory",
            "The largest plan of each device: its peak memory by part against the"
            " device's budget. A cross: at least one plan met OOM.",
            memory.frame,
            memory.draw,
        ),
        FigureSpec(
            "traffic",
            "Bytes of all devices so far against simulated time: downloads left, uploads right.",
            curves.progress,
            traffic.draw,
        ),
        _curve(
            f"{name}-traffic",
            f"{title} against the bytes that all devices sent and received.",
            curves.TRAFFIC,
            judge,
        ),
        FigureSpec(
            "energy",
            "Energy of all devices in the whole run, by what it was spent on.",
            round_time.energy_frame,
            round_time.draw_energy,
        ),
        _curve(
            f"{name}-energy",
            f"{title} against the energy that all devices spent.",
            curves.ENERGY,
            judge,
        ),
        FigureSpec(
            "choices",
            "What each strategy chose for each device and round. Grey: no plan; red dot: the plan"
            " met OOM.",
            choices.frame,
            choices.draw,
        ),
        FigureSpec(
            "staleness",
            "Age of the merged updates: aggregations between a plan's broadcast and its merging.",
            participation.staleness_frame,
            participation.draw_staleness,
        ),
        FigureSpec(
            "participation",
            "Share of the fleet's devices whose updates were merged at most k times; at 0: never"
            " merged.",
            participation.device_frame,
            participation.draw_devices,
        ),
        FigureSpec(
            "own-tests",
            "Share of the devices whose model does no better on the test data that the device kept"
            " for itself, worst at the left; all seeds together.",
            partial(own_tests.frame, metric=metric),
            partial(own_tests.draw, metric=metric),
            _any,
        ),
        FigureSpec(
            "rates",
            "Mean rate of each transfer, by the pool of its link; all runs together.",
            conditions.rate_frame,
            conditions.draw_rates,
        ),
        FigureSpec(
            "fleet",
            "What the fleet met, whatever the strategy (first seed): the share of the devices that"
            " are online, have joined and have not crashed, batteries left out; and their links'"
            " rates.",
            fleet_conditions.frame,
            fleet_conditions.draw,
        ),
        FigureSpec(
            "availability",
            "Plans that were paused or lost because their device was offline.",
            conditions.offline_frame,
            conditions.draw_offline,
        ),
        FigureSpec(
            "ablation",
            "What each run changes against the baseline of its seed.",
            ablation.frame,
            ablation.draw,
        ),
    )


FIGURES = figures_of(UNNAMED_METRIC)
"""The figures of a run whose task is not named."""


def render(
    frame: pd.DataFrame, draw: Draw, paper: style.Paper, formats: Sequence[str] = style.FORMATS
) -> dict[str, bytes]:
    """Return by suffix the figure in these formats, and the CSV of what it plots."""
    with style.context():
        figure = draw(frame, paper)
        files = {suffix: style.render(figure, suffix) for suffix in formats}
    files["csv"] = frame.to_csv(index=False, lineterminator="\n").encode()
    return files


def write(
    spec: FigureSpec,
    study: Study,
    folder: Path,
    *,
    paper: style.Paper = style.IEEE,
    formats: Sequence[str] = style.FORMATS,
) -> list[Path]:
    """Write the figure in these formats, and the CSV of what it plots; return their paths.

    Nothing is written, and nothing returned, where the runs hold nothing to plot.
    """
    frame = with_names(spec.of(study), study.names)
    if frame.empty:
        return []
    paths = []
    for suffix, content in render(frame, spec.draw, paper, formats).items():
        paths.append(folder / f"{spec.name}.{suffix}")
        paths[-1].write_bytes(content)
    return paths
