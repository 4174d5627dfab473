"""Follows the state of a run, and says it in words for the progress view."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import numpy as np

from devices.tasks.task import Metric
from simulator.log.cohort_timeline import CohortEvents
from simulator.log.records import ClientRecord, ClientTable, Event, RoundRecord

LOSSES = {  # counts of a round's plans that were not merged -> words, in the order shown
    "num_oom": "out of memory",
    "num_late": "late",
    "num_offline": "offline",
    "num_crashed": "crashed",
    "num_lost": "lost on the link",
    "num_rejected": "rejected",
}
STARTED = "_started"
ENDS = ("update_received", "oom", "late", "crashed", "lost")
PHASES = {"download_s": "downloading", "train_s": "training", "upload_s": "uploading"}
DOING = {name.removesuffix("_s"): words for name, words in PHASES.items()} | {
    "training": "training"
}


def duration(seconds: float) -> str:
    """Return a duration in words, like ``1h 05m``, ``3m 20s`` or ``4.1s``."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)}h {int(seconds % 3600 // 60):02d}m"
    if seconds >= 60:
        return f"{int(seconds // 60)}m {int(seconds % 60):02d}s"
    return f"{seconds:.1f}s"


def in_words(metric: Metric, value: float) -> str:
    """Return a score as a person reads it: a share in percent, anything else to 4 digits."""
    return f"{value:.1%}" if metric.unit == "share" else f"{value:.4g}"


def score_in_words(metrics: Mapping[Metric, float]) -> str:
    """Return the first metric with its name; empty where the model was not evaluated."""
    first = next(((m, value) for m, value in metrics.items() if not math.isnan(value)), None)
    return f"{first[0].name} {in_words(*first)}" if first else ""


class ProgressState:
    """The progress state follows one run for the progress view; no result depends on it."""

    def __init__(self) -> None:
        self.at_s = 0.0
        self._score: tuple[Metric, float] | None = None  # that of the last evaluated model
        self._best = math.nan
        self.losses: Counter[str] = Counter()
        self._spent_s = self._lost_s = 0.0  # seconds of devices in total, and those lost
        self._doing: dict[int, str] = {}
        self._away: set[int] = set()
        self._num_arrived = 0  # updates that no aggregation has merged yet
        self._awaited: ClientRecord | None = None  # the plan that ended last in this round
        self.straggler = ""  # that of the last round, such as "device 8 (phone), mostly uploading"

    def event(self, event: Event) -> None:
        """Follow what each device does."""
        self.at_s = event.at_s
        if event.name == "aggregated":
            self._num_arrived = 0
        self._num_arrived += event.name == "update_received"
        if event.device is None:
            return
        if event.name.endswith(STARTED):
            self._doing[event.device] = DOING[event.name.removesuffix(STARTED)]
        elif event.name in ENDS:
            self._doing.pop(event.device, None)
        elif event.name == "went_offline":
            self._away.add(event.device)
        elif event.name == "came_back":
            self._away.discard(event.device)

    def client(self, record: ClientRecord) -> None:
        """Take in a plan that has ended."""
        spent_s = record.finished_s - record.started_s
        self._spent_s += spent_s
        if record.outcome != "aggregated":
            self._lost_s += spent_s
        if record.outcome == "offline":
            self._doing.pop(record.device_id, None)
            self._away.discard(record.device_id)
        self._await(record)

    def _await(self, record: ClientRecord) -> None:
        """Take note of a plan that the round waited for, if it ended after all others."""
        if record.outcome not in ("aggregated", "late"):
            return
        last = self._awaited
        if last is None or _end(record) > _end(last):
            self._awaited = record

    def cohort(self, events: CohortEvents) -> None:
        """Follow many devices at once, to the end of their plans."""
        for _, event in events.others:
            self.event(event)
        self.at_s = max(self.at_s, events.timeline.last_s)
        self._num_arrived += len(events.timeline.arrivals)

    def client_table(self, table: ClientTable) -> None:
        """Take in many plans that have ended."""
        columns = table.columns
        spent_s = columns["finished_s"] - columns["started_s"]
        outcomes = columns["outcome"]
        self._spent_s += float(spent_s.sum())
        self._lost_s += float(spent_s[outcomes != "aggregated"].sum())
        for device_id in columns["device_id"][outcomes == "offline"].tolist():
            self._doing.pop(device_id, None)
            self._away.discard(device_id)
        awaited = np.flatnonzero((outcomes == "aggregated") | (outcomes == "late"))
        if len(awaited):
            order = np.lexsort((-columns["device_id"][awaited], columns["finished_s"][awaited]))
            self._await(table.record(int(awaited[order[-1]])))

    def round(self, record: RoundRecord) -> None:
        """Take in a round that has closed; its plans came before it."""
        self.at_s = record.closed_s
        if not math.isnan(record.score):
            metric = next(iter(record.metrics))
            self._score = metric, record.score
            self._best = metric.best([record.score, self._best])
        self.losses.update({words: getattr(record, name) for name, words in LOSSES.items()})
        self.straggler = _in_words(self._awaited) if self._awaited else ""
        self._awaited = None

    @property
    def scores(self) -> str:
        """Return words like ``accuracy 61.2% (best 63.0%)``; "" where nothing was evaluated."""
        if self._score is None:
            return ""
        metric, value = self._score
        best = f" (best {in_words(metric, self._best)})" if self._best != value else ""
        return f"{metric.name} {in_words(metric, value)}{best}"

    @property
    def in_flight(self) -> str:
        """Return what the devices with a plan do now: ``2 training, 1 offline, 5 arrived``."""
        doing = Counter(
            "offline" if device in self._away else words for device, words in self._doing.items()
        )
        doing["arrived"] = self._num_arrived
        names = [*PHASES.values(), "offline", "arrived"]
        return ", ".join(f"{doing[name]} {name}" for name in names if doing[name])

    @property
    def lost(self) -> str:
        """Return lost work, ``7 out of memory, 1 late: 12% of device time``; "" where none was."""
        counts = ", ".join(f"{n} {words}" for words, n in self.losses.items() if n)
        if not counts:
            return ""
        return f"{counts}: {self._lost_s / max(self._spent_s, 1e-300):.0%} of device time"


def _end(record: ClientRecord) -> tuple[float, int]:
    """Return a key by which plans are in order of their ends, the lower device last."""
    return record.finished_s, -record.device_id


def _in_words(awaited: ClientRecord) -> str:
    """Return in words the device that a round waited for."""
    longest = max(PHASES, key=lambda name: float(getattr(awaited, name)))
    return f"device {awaited.device_id} ({awaited.profile}), mostly {PHASES[longest]}"
