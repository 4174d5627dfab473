"""Where a device's time goes in a round, and what it costs in joules: stacked bars."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import bands, bars, style
from analysis.figures.rows import of_runs
from analysis.metrics.study import Study
from analysis.runs.load import Run
from analysis.units import JOULES, SECONDS

PHASES = {  # column: name in the legend and colour
    "download_s": ("download", style.SKY),
    "train_s": ("compute", style.SLATE),
    "upload_s": ("upload", style.ORANGE),
    "offline_s": ("offline", style.OLIVE),
    "waiting_s": ("wait", style.PALE),
    "lost_s": ("lost work", style.RED),
}
ENERGY = {
    "energy_compute_j": ("compute", style.SLATE),
    "energy_radio_j": ("radio", style.ORANGE),
    "energy_idle_j": ("idle while waiting", style.PALE),
}


def time_frame(study: Study) -> pd.DataFrame:
    """Return one row for each run: the mean seconds of a plan in each phase, and lost.

    The phases are those of plans that were aggregated; of any other, all of its time is lost. Both
    are over the number of all plans, so that the parts of a bar add up to the mean time of a plan.
    """
    return of_runs(study.runs, lambda run: pd.DataFrame([_phases(run)] if len(run.clients) else []))


def energy_frame(study: Study) -> pd.DataFrame:
    """Return one row for each run: the joules of all its devices, by what they were spent on."""
    return of_runs(study.runs, lambda run: pd.DataFrame([dict(run.clients[list(ENERGY)].sum())]))


def _phases(run: Run) -> dict[str, float]:
    plans = run.clients
    done = plans["outcome"] == "aggregated"
    phases = {
        column: float(plans.loc[done, column].sum()) / len(plans) if column in plans else 0.0
        for column in PHASES
        if column != "lost_s"
    }
    lost_s = (plans["finished_s"] - plans["started_s"])[~done].sum()
    return {**phases, "lost_s": float(lost_s) / len(plans)}


def plot_time(frame: pd.DataFrame, axes: Axes, *, band: str = "range") -> None:
    """Draw a bar for each label: the mean time of a plan, by phase."""
    colors = {column: color for column, (_, color) in PHASES.items()}
    unit = bars.stack(frame, axes, colors, scale=SECONDS, band=band)
    axes.set_xlabel(f"Time per plan handed out ({unit.name})")


def plot_energy(frame: pd.DataFrame, axes: Axes, *, band: str = "range") -> None:
    """Draw a bar for each label: the joules of the whole run, by what they were spent on."""
    colors = {column: color for column, (_, color) in ENERGY.items()}
    unit = bars.stack(frame, axes, colors, scale=JOULES, band=band)
    axes.set_xlabel(f"Energy of all devices in the whole run ({unit.name})")


def draw_time(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return a narrow figure; phases in which no run spent any time are not named."""
    figure, axes = bars.figure(frame, paper.column_in)
    plot_time(frame, axes, band=paper.band)
    named = [part for column, part in PHASES.items() if frame[column].any()]
    style.legend_above(figure, bars.patches(dict(named)), bands.note(frame, paper.band))
    return figure


def draw_energy(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Draw a narrow figure; what no run spent any energy on is not named."""
    figure, axes = bars.figure(frame, paper.column_in)
    plot_energy(frame, axes, band=paper.band)
    named = [part for column, part in ENERGY.items() if frame[column].any()]
    style.legend_above(figure, bars.patches(dict(named)), bands.note(frame, paper.band))
    return figure
