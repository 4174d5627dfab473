"""Every number that runs are compared by: its name, unit, direction and estimate, once.

To add a metric, compute its column in ``run_metrics`` and add a line here; tables, reports and the
CSV files follow. ``docs/metrics.md`` holds the formula of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from analysis.units import BYTES, COUNT, JOULES, PERCENT, PLAIN, RATIO, SECONDS, Scale
from devices.tasks.registry import TASKS

SMOOTHING = 3
"""Evaluations whose mean must reach a target: one alone may do so by noise."""

Rule = Literal["always", "where it occurs", "never"]


@dataclass(frozen=True)
class Metric:
    """One number of a run, and how it is estimated over seeds and shown.

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

    @property
    def is_to_target(self) -> bool:
        """True for what is spent until the target accuracy is reached, and for ratios of it."""
        return self.estimate != "mean"


def _to_target(column: str, title: str, scale: Scale, at_least: str) -> Metric:
    return Metric(column, title, scale, estimate="median", at_least=at_least)


OF_OTHER_TASKS = tuple(
    metric
    for task in TASKS.values()
    for metric in task.metrics
    if metric.name not in ("accuracy", "loss")
)
"""Metrics of tasks that no accuracy judges, such as perplexity, by their columns of the rounds."""


def _of_other_tasks() -> tuple[Metric, ...]:
    """Return the rows of these metrics, with the unit and direction that the task gives them."""
    return tuple(
        Metric(
            f"{which}_{metric.name}",
            f"{which} {metric.name}".replace("_", " ").capitalize(),
            PERCENT if metric.unit == "share" else PLAIN,
            metric.better,
            shown="where it occurs",
        )
        for metric in OF_OTHER_TASKS
        for which in ("final", "best")
    )


METRICS = (
    Metric("is_reached", "Share of runs that reached {target}", PERCENT, "higher", shown="never"),
    _to_target("time_to_target_s", "Time to {target}", SECONDS, "spent_s"),
    _to_target("time_to_stay_s", "Time until it stays at {target}", SECONDS, "spent_s"),
    Metric("speed_up", "Speed-up over {baseline} (×)", RATIO, "higher", estimate="ratio"),
    _to_target("rounds_to_target", "Rounds to {target}", COUNT, "spent_rounds"),
    _to_target("bytes_to_target", "Traffic to {target}", BYTES, "spent_bytes"),
    _to_target("energy_to_target_j", "Energy to {target}", JOULES, "spent_energy_j"),
    Metric("final_accuracy", "Final accuracy", PERCENT, "higher"),
    Metric("accuracy_error", "Standard error of the final accuracy", PERCENT, ""),
    Metric("best_accuracy", "Best accuracy", PERCENT, "higher"),
    Metric("accuracy_at_time", "Accuracy after {seconds}", PERCENT, "higher"),
    Metric("accuracy_at_bytes", "Accuracy after {bytes} both ways", PERCENT, "higher"),
    Metric("accuracy_at_energy", "Accuracy after {joules}", PERCENT, "higher"),
    Metric("accuracy_area", "Mean accuracy over time", PERCENT, "higher"),
    *_of_other_tasks(),
    Metric("num_rounds", "Rounds", COUNT, ""),
    Metric("simulated_s", "Simulated time", SECONDS, ""),
    Metric("waiting_s", "Mean wait per round", SECONDS),
    Metric("straggler_share", "Share of stragglers", PERCENT),
    Metric("utilisation", "Device utilisation", PERCENT, "higher"),
    Metric("compute_utilisation", "Compute utilisation", PERCENT, "higher", shown="never"),
    Metric("planned_memory_bytes", "Mean memory that a plan needs", BYTES),
    Metric("peak_memory_bytes", "Highest peak memory", BYTES),
    Metric("peak_memory_share", "Highest peak in its budget", PERCENT, ""),
    Metric("num_oom", "Plans that met OOM", COUNT),
    Metric("num_late", "Plans dropped as late", COUNT),
    Metric("num_sat_out", "Device-rounds sat out", COUNT),
    Metric("download_bytes", "Download", BYTES),
    Metric("upload_bytes", "Upload", BYTES),
    Metric("energy_j", "Energy", JOULES),
    Metric("lost_turn_share", "Turns of devices that were lost", PERCENT),
    Metric("lost_work_share", "Lost device time", PERCENT),
    Metric("lost_s", "Lost device seconds", SECONDS, shown="never"),
    Metric("lost_bytes", "Lost bytes", BYTES, shown="never"),
    Metric("lost_j", "Lost energy", JOULES, shown="never"),
    Metric("num_offline", "Plans lost to a device gone offline", COUNT, shown="where it occurs"),
    Metric("num_crashed", "Plans lost to a crash", COUNT, shown="where it occurs"),
    Metric("num_lost", "Uploads lost on the link", COUNT, shown="where it occurs"),
    Metric("num_rejected", "Updates refused by the server", COUNT, shown="where it occurs"),
    Metric("mean_staleness", "Mean staleness", PLAIN, "", shown="where it occurs"),
    Metric("max_staleness", "Highest staleness", COUNT, "", shown="never"),
    Metric("participation_fairness", "Fairness of participation", PLAIN, "higher"),
    Metric("device_accuracy_min", "Worst device's accuracy", PERCENT, "higher", shown="never"),
    Metric("device_accuracy_q10", "Worst tenth of devices' accuracy", PERCENT, "higher"),
    Metric("device_accuracy_q25", "Worst quarter's accuracy", PERCENT, "higher", shown="never"),
    Metric("device_accuracy_median", "Median device's accuracy", PERCENT, "higher"),
    Metric("device_accuracy_max", "Best device's accuracy", PERCENT, "higher", shown="never"),
)
"""In the order of the rows of a table."""
