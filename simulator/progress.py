"""What a person sees while a run goes on: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from simulator.records import ClientRecord, Event, RoundRecord
from simulator.store import RunLog


class Reporter(RunLog, Protocol):
    """Told of the steps around a run as well as of the run itself."""

    def start(self, label: str, rounds: int) -> None: ...

    def finish(self, message: str) -> None: ...

    def step(self, message: str) -> None: ...


class Tee:
    """Passes what happens on to several logs."""

    def __init__(self, logs: Sequence[RunLog]) -> None:
        self._logs = logs

    def event(self, event: Event) -> None:
        for log in self._logs:
            log.event(event)

    def client(self, record: ClientRecord) -> None:
        for log in self._logs:
            log.client(record)

    def round(self, record: RoundRecord) -> None:
        for log in self._logs:
            log.round(record)


def duration(seconds: float) -> str:
    """Like ``1h 05m``, ``3m 20s`` or ``4.1s``."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)}h {int(seconds % 3600 // 60):02d}m"
    if seconds >= 60:
        return f"{int(seconds // 60)}m {int(seconds % 60):02d}s"
    return f"{seconds:.1f}s"


def _accuracy(value: float) -> str:
    return "" if math.isnan(value) else f"{value:6.1%}"


class PlainReporter:
    """One line a round, for log files and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._label, self._rounds = "", 0

    def start(self, label: str, rounds: int) -> None:
        self._label, self._rounds = label, rounds

    def finish(self, message: str) -> None:
        self.step(message)

    def step(self, message: str) -> None:
        self._console.print(message, highlight=False, soft_wrap=True)

    def event(self, event: Event) -> None:
        """Events are for the log file."""

    def client(self, record: ClientRecord) -> None:
        """Client records are for the tables."""

    def round(self, record: RoundRecord) -> None:
        accuracy = _accuracy(record.accuracy)
        self.step(
            f"{self._label}: round {record.round}/{self._rounds}, simulated "
            f"{duration(record.closed_s)}{', accuracy' + accuracy if accuracy else ''}"
            f"{f', {record.num_oom} out of memory' if record.num_oom else ''}"
        )


class _Simulated(ProgressColumn):
    """The simulated clock, the last accuracy and what went wrong so far."""

    def render(self, task: Task) -> Text:
        shown = task.fields
        parts = [f"simulated {duration(shown['at_s'])}"]
        if not math.isnan(shown["accuracy"]):
            parts.append(f"accuracy {shown['accuracy']:.1%}")
        parts += [f"{shown[key]} {key}" for key in ("oom", "late") if shown[key]]
        return Text(" · ".join(parts), style="cyan")


class BarReporter:
    """A live bar a run: rounds, simulated time, accuracy, what was lost, time left."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed:.0f}/{task.total:.0f} rounds"),
            _Simulated(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("", total=1, visible=False)

    def start(self, label: str, rounds: int) -> None:
        self._progress.start()
        self._task = self._progress.add_task(
            label, total=rounds, at_s=0.0, accuracy=math.nan, oom=0, late=0
        )

    def finish(self, message: str) -> None:
        self._progress.stop()
        self.step(message)

    def step(self, message: str) -> None:
        self._progress.console.print(message, highlight=False, soft_wrap=True)

    def event(self, event: Event) -> None:
        """Events are for the log file."""

    def client(self, record: ClientRecord) -> None:
        """Client records are for the tables."""

    def round(self, record: RoundRecord) -> None:
        shown = self._progress.tasks[-1].fields
        accuracy = shown["accuracy"] if math.isnan(record.accuracy) else record.accuracy
        self._progress.update(
            self._task,
            completed=record.round,
            at_s=record.closed_s,
            accuracy=accuracy,
            oom=shown["oom"] + record.num_oom,
            late=shown["late"] + record.num_late,
        )


def reporter(console: Console) -> Reporter:
    """Bars where somebody watches, lines where not."""
    return BarReporter(console) if console.is_terminal else PlainReporter(console)
