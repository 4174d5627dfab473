"""Defines every number that runs are compared by: its name, unit, direction and estimate.

To add a metric, compute its column in ``run_metrics`` and add a line here; tables, reports and the
CSV files follow. ``docs/metrics.md`` holds the formula of each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from analysis.units import BYTES, COUNT, JOULES, PERCENT, PLAIN, RATIO, SECONDS, Scale, Unit
from devices.tasks import task as tasks
from devices.tasks.registry import TASKS

SMOOTHING = 3
"""The number of evaluations whose mean must reach a target, since one may do so by noise."""

Rule = Literal["always", "where it occurs", "never"]


@dataclass(frozen=True)
class Metric:
    """A metric is a number of a run, with how it is estimated over seeds and shown.

    ``column`` is its column in ``Study.per_run`` and its name in ``Study.summary``. ``title`` may
    hold ``{target}``, ``{baseline}`` and the equal spending ``{seconds}``, ``{bytes}``,
    ``{joules}``. The value of a run that does not have the number is bounded from below by the
    column ``at_least``, where one is named. ``shown`` says when a table has a row of it: "where it
    occurs" leaves out a row of zeros.
    """

    column: str
    title: str
    scale: Scale = PLAIN
    better: Literal["lower", "higher", ""] = "lower"
    estimate: Literal["mean", "median", "ratio"] = "mean"
    at_least: str = ""
    shown: Rule = "always"
    between: tuple[float, float] | None = None

    @property
    def possible(self) -> tuple[float, float]:
        """Return the least and the most that the number can be, by ``between`` or by scale."""
        return self.between or (0.0, 1.0 if self.scale is PERCENT else math.inf)

    @property
    def is_to_target(self) -> bool:
        """Return True for what is spent until the target is reached, and for ratios of it."""
        return self.estimate != "mean"


def _to_target(column: str, title: str, scale: Scale, at_least: str) -> Metric:
    return Metric(column, title, scale, estimate="median", at_least=at_least)


JUDGES = tuple({task.metrics[0].name: task.metrics[0] for task in TASKS.values()}.values())
"""The first metric of each task, by which its runs are judged."""
BESIDE = tuple(
    {
        metric.name: metric
        for task in TASKS.values()
        for metric in task.metrics
        if metric not in JUDGES and metric.name != "loss"
    }.values()
)
"""Further metrics of a task that its tables show, by their columns of the rounds."""


def scale_of(metric: tasks.Metric) -> Scale:
    """Return the units in which readers see a metric of a task."""
    return PERCENT if metric.unit == "share" else Scale((Unit(metric.unit, 1.0),))


def value_in_words(metric: tasks.Metric, value: float) -> str:
    """Return a value of a metric as it was asked for: ``55 %``, or ``loss 2.5 nats``."""
    if metric.unit == "share":
        return f"{100 * value:.6g} %"
    return f"{metric.phrase} {value:.6g} {metric.unit}".rstrip()


def wrong_target(metric: tasks.Metric, target: float) -> str:
    """Return why a metric cannot have this target, in a sentence; empty where it can."""
    if metric.unit == "share":
        rule, is_right = "be a share in (0, 1]", 0 < target <= 1
    else:
        rule, is_right = "be a positive number", 0 < target < math.inf
    return "" if is_right else f"a target {metric.phrase} must {rule}, got {target:g}"


def _judged(metric: tasks.Metric, column: str, title: str, *, shown: Rule = "always") -> Metric:
    """Return a row with the units, the direction and the range of a metric of a task."""
    scale, between = scale_of(metric), metric.possible
    return Metric(column, title, scale, metric.better, shown=shown, between=between)


def _rows_of_judge(metric: tasks.Metric) -> Iterator[Metric]:
    """Yield the rows of a metric that runs are judged by, with its unit and direction."""
    name, title = metric.name, metric.title

    def row(column: str, title: str) -> Metric:
        return _judged(metric, column, title)

    yield row(f"final_{name}", f"Final {metric.phrase}")
    yield Metric(f"{name}_error", f"Standard error of the final {metric.phrase}", PERCENT, "")
    yield row(f"best_{name}", f"Best {metric.phrase}")
    yield row(f"{name}_at_time", f"{title} after {{seconds}}")
    yield row(f"{name}_at_bytes", f"{title} after {{bytes}} both ways")
    yield row(f"{name}_at_energy", f"{title} after {{joules}}")
    yield row(f"{name}_area", f"Mean {metric.phrase} over time")


def _rows_beside(metric: tasks.Metric) -> Iterator[Metric]:
    """Yield the rows of a further metric of a task."""
    for which in ("final", "best"):
        title = f"{which.capitalize()} {metric.phrase}"
        yield _judged(metric, f"{which}_{metric.name}", title)


def _rows_of_devices(metric: tasks.Metric) -> Iterator[Metric]:
    """Yield the rows of what devices may expect of the global model, from the worst on.

    Behind them stand those of what devices' models reach on their own test data.
    """
    titles: tuple[tuple[str, str, Rule], ...] = (
        ("min", "Worst device's", "never"),
        ("q10", "Worst tenth of devices'", "always"),
        ("q25", "Worst quarter's", "never"),
        ("median", "Median device's", "always"),
        ("max", "Best device's", "never"),
    )
    for kind, where in (("device", ""), ("own", " on own test data")):
        if kind == "own":
            title = f"Mean {metric.phrase} on own test data"
            yield _judged(metric, f"own_{metric.name}_mean", title)
        for name, whose, shown in titles:
            column, title = f"{kind}_{metric.name}_{name}", f"{whose} {metric.phrase}{where}"
            yield _judged(metric, column, title, shown=shown)


GROUPS: Mapping[str, tuple[Metric, ...]] = {
    "To the target": (
        Metric(
            "is_reached", "Share of runs that reached {target}", PERCENT, "higher", shown="never"
        ),
        _to_target("time_to_target_s", "Time to {target}", SECONDS, "spent_s"),
        _to_target("time_to_stay_s", "Time until it stays at {target}", SECONDS, "spent_s"),
        Metric("speed_up", "Speed-up over {baseline} (×)", RATIO, "higher", estimate="ratio"),
        _to_target("rounds_to_target", "Rounds to {target}", COUNT, "spent_rounds"),
        _to_target("bytes_to_target", "Traffic to {target}", BYTES, "spent_bytes"),
        _to_target("energy_to_target_j", "Energy to {target}", JOULES, "spent_energy_j"),
    ),
    "Model": (
        *(row for metric in JUDGES for row in _rows_of_judge(metric)),
        *(row for metric in BESIDE for row in _rows_beside(metric)),
    ),
    "Time": (
        Metric("num_rounds", "Rounds", COUNT, ""),
        Metric("simulated_s", "Simulated time", SECONDS, ""),
        Metric("waiting_s", "Mean wait per round", SECONDS),
        Metric("straggler_share", "Share of stragglers", PERCENT),
        Metric("utilisation", "Device utilisation", PERCENT, "higher"),
        Metric("compute_utilisation", "Compute utilisation", PERCENT, "higher", shown="never"),
    ),
    "Memory and plans": (
        Metric("planned_memory_bytes", "Mean memory that a plan needs", BYTES),
        Metric("peak_memory_bytes", "Highest peak memory", BYTES),
        Metric("peak_memory_share", "Highest peak in its budget", PERCENT, ""),
        Metric("num_oom", "Plans that met OOM", COUNT),
        Metric("num_late", "Plans dropped as late", COUNT),
        Metric("num_sat_out", "Device-rounds sat out", COUNT),
    ),
    "Traffic and energy": (
        Metric("download_bytes", "Download", BYTES),
        Metric("upload_bytes", "Upload", BYTES),
        Metric("energy_j", "Energy", JOULES),
    ),
    "Lost work": (
        Metric("lost_turn_share", "Turns of devices that were lost", PERCENT),
        Metric("lost_work_share", "Lost device time", PERCENT),
        Metric("lost_s", "Lost device seconds", SECONDS, shown="never"),
        Metric("lost_bytes", "Lost bytes", BYTES, shown="never"),
        Metric("lost_j", "Lost energy", JOULES, shown="never"),
        Metric(
            "num_offline", "Plans lost to a device gone offline", COUNT, shown="where it occurs"
        ),
        Metric("num_crashed", "Plans lost to a crash", COUNT, shown="where it occurs"),
        Metric("num_lost", "Uploads lost on the link", COUNT, shown="where it occurs"),
        Metric("num_rejected", "Updates refused by the server", COUNT, shown="where it occurs"),
    ),
    "Across devices": (
        Metric("mean_staleness", "Mean staleness", PLAIN, "", shown="where it occurs"),
        Metric("max_staleness", "Highest staleness", COUNT, "", shown="never"),
        Metric(
            "participation_fairness",
            "Fairness of participation",
            PLAIN,
            "higher",
            between=(0.0, 1.0),
        ),
        *(row for metric in JUDGES for row in _rows_of_devices(metric)),
    ),
}
"""The metrics in the order of a table's rows, by the headings under which a page lists them."""
METRICS = tuple(metric for group in GROUPS.values() for metric in group)
GROUP_OF = {metric.column: name for name, group in GROUPS.items() for metric in group}
