"""FedClock in Python: ``fedclock.run(config)`` gives frames, plotting functions draw them.

A plotting function takes a frame and a matplotlib Axes; docs/figures.md shows them at work. What is
named here is imported when it is first used, so that ``import fedclock`` takes no time;
``python -m fedclock`` is the command line.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    raise ImportError(
        "FedClock needs Linux or macOS, or WSL 2 on Windows: it locks files in a way that Windows "
        "lacks"
    )

if TYPE_CHECKING:
    from analysis.api import run, sweep
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
    from analysis.results import Result, compare, draw, load, summary, write_figures
    from analysis.results import write_figures as figures
    from analysis.runs.files import RunError
    from simulator.config.experiment import ConfigError
    from simulator.config.problems import UserError
    from simulator.log.progress import LineReporter

__all__ = [
    "FIGURES",
    "PAPERS",
    "ConfigError",
    "LineReporter",
    "Paper",
    "Result",
    "RunError",
    "UserError",
    "compare",
    "draw",
    "figures",
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
    "summary",
    "sweep",
    "write_figures",
]

_PLACES = {
    "FIGURES": "analysis.figures:FIGURES",
    "PAPERS": "analysis.figures.style:PAPERS",
    "ConfigError": "simulator.config.experiment:ConfigError",
    "LineReporter": "simulator.log.progress:LineReporter",
    "Paper": "analysis.figures.style:Paper",
    "Result": "analysis.results:Result",
    "RunError": "analysis.runs.files:RunError",
    "UserError": "simulator.config.problems:UserError",
    "compare": "analysis.results:compare",
    "draw": "analysis.results:draw",
    "figures": "analysis.results:write_figures",
    "load": "analysis.results:load",
    "plot_change": "analysis.figures.ablation:plot",
    "plot_choices": "analysis.figures.choices:plot",
    "plot_curve": "analysis.figures.curves:plot",
    "plot_energy": "analysis.figures.round_time:plot_energy",
    "plot_gantt": "analysis.figures.gantt:plot",
    "plot_memory": "analysis.figures.memory:plot",
    "plot_offline": "analysis.figures.conditions:plot_offline",
    "plot_participation": "analysis.figures.participation:plot_devices",
    "plot_rates": "analysis.figures.conditions:plot_rates",
    "plot_round_time": "analysis.figures.round_time:plot_time",
    "plot_sensitivity": "analysis.figures.sensitivity:plot",
    "plot_staleness": "analysis.figures.participation:plot_staleness",
    "plot_time_to_target": "analysis.figures.target:plot",
    "plot_waiting": "analysis.figures.waiting:plot_mean",
    "plot_waiting_cdf": "analysis.figures.waiting:plot_cdf",
    "plot_waiting_rounds": "analysis.figures.waiting:plot_rounds",
    "run": "analysis.api:run",
    "style": "analysis.figures.style:context",
    "summary": "analysis.results:summary",
    "sweep": "analysis.api:sweep",
    "write_figures": "analysis.results:write_figures",
}
"""Name -> the module that it stands in, and its name there."""


def __getattr__(name: str) -> Any:
    """Import what a name stands for. Any: the types are those of the imports above."""
    if name not in _PLACES:
        raise AttributeError(f"module 'fedclock' has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    value = globals()[name] = getattr(import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if __name__ == "__main__":
    from analysis.commands.main import main

    main()
