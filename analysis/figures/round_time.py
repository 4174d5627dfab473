"""Draws where the time of a plan and the energy of a run go, as stacked bars."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import bars, colors, style
from analysis.figures.rows import of_runs
from analysis.metrics.study import Study
from analysis.runs.load import Run
from analysis.units import JOULES, SECONDS

PHASES: bars.Parts = {
    "download_s": ("download", colors.SKY),
    "train_s": ("compute", colors.SLATE),
    "upload_s": ("upload", colors.ORANGE),
    "offline_s": ("offline", colors.OLIVE),
    "waiting_s": ("wait", colors.PALE),
    "lost_s": ("lost work", colors.RED),
}
ENERGY: bars.Parts = {
    "energy_compute_j": ("compute", colors.SLATE),
    "energy_radio_j": ("radio", colors.ORANGE),
    "energy_idle_j": ("idle while waiting", colors.PALE),
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
    unit = bars.stack(frame, axes, PHASES, scale=SECONDS, band=band)
    axes.set_xlabel(f"Time per dispatched plan ({unit.name})")


def plot_energy(frame: pd.DataFrame, axes: Axes, *, band: str = "range") -> None:
    """Draw a bar for each label: the joules of the whole run, by what they were spent on."""
    unit = bars.stack(frame, axes, ENERGY, scale=JOULES, band=band)
    axes.set_xlabel(f"Energy of all devices in the whole run ({unit.name})")


def draw_time(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return a narrow figure; phases in which no run spent any time are not named."""
    return bars.stacked_figure(frame, paper, plot_time, PHASES)


def draw_energy(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return a narrow figure; what no run spent any energy on is not named."""
    return bars.stacked_figure(frame, paper, plot_energy, ENERGY)
