"""FedClock in Python: ``fedclock.run(config)`` gives frames, plotting functions draw them.

A plotting function takes a frame and a matplotlib Axes; docs/figures.md shows them at work.
"""

from analysis.api import Result, draw, load, run, write_figures
from analysis.figures import FIGURES
from analysis.figures.ablation import plot as plot_change
from analysis.figures.choices import plot as plot_choices
from analysis.figures.conditions import plot_offline, plot_rates
from analysis.figures.curves import plot as plot_curve
from analysis.figures.gantt import plot as plot_gantt
from analysis.figures.memory import plot as plot_memory
from analysis.figures.participation import plot_devices as plot_participation
from analysis.figures.participation import plot_staleness
from analysis.figures.round_time import plot_energy
from analysis.figures.round_time import plot_time as plot_round_time
from analysis.figures.sensitivity import plot as plot_sensitivity
from analysis.figures.style import PAPERS, Paper
from analysis.figures.style import context as style
from analysis.figures.target import plot as plot_time_to_target
from analysis.figures.waiting import plot_cdf as plot_waiting_cdf
from analysis.figures.waiting import plot_mean as plot_waiting
from analysis.figures.waiting import plot_rounds as plot_waiting_rounds
from analysis.runs.files import RunError
from simulator.config.experiment import ConfigError
from simulator.config.problems import UserError

__all__ = [
    "FIGURES",
    "PAPERS",
    "ConfigError",
    "Paper",
    "Result",
    "RunError",
    "UserError",
    "draw",
    "load",
    "plot_change",
    "plot_choices",
    "plot_curve",
    "plot_energy",
    "plot_gantt",
    "plot_memory",
    "plot_offline",
    "plot_participation",
    "plot_rates",
    "plot_round_time",
    "plot_sensitivity",
    "plot_staleness",
    "plot_time_to_target",
    "plot_waiting",
    "plot_waiting_cdf",
    "plot_waiting_rounds",
    "run",
    "style",
    "write_figures",
]
