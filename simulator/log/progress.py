"""Shows a run's progress: a live view in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from simulator.log.block import Block, Piece
from simulator.log.progress_state import LOSSES, ProgressState, duration, score_in_words
from simulator.log.protocol import BlockLog
from simulator.log.records import Event, RoundRecord

NUM_TIMED = 3
"""The number of rounds after which the remaining time is estimated from their pace."""


class Reporter(BlockLog, Protocol):
    """A reporter shows a run to the user: what a log is told, and the steps around the run."""

    def start(self, label: str, rounds: int) -> None: ...

    def finish(self, message: str) -> None: ...

    def step(self, message: str) -> None: ...


class _Following:
    """This base of reporters follows the run in a progress state, and prints to a console.

    A line is printed for each round. Only the live view shows what devices do within one.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._state = ProgressState()
        self._label, self._rounds = "", 0

    def start(self, label: str, rounds: int) -> None:
        self._label, self._rounds, self._state = label, rounds, ProgressState()

    def step(self, message: str) -> None:
        if not self._console.quiet:  # a quiet console would format the line all the same
            self._console.print(message, highlight=False, soft_wrap=True, markup=False)

    def event(self, event: Event) -> None: ...

    def block(self, block: Block) -> None:
        for one in block.each_round():
            self._follow(one.pieces)
            self._state.client_table(one.clients)
            if one.round:
                self.round(one.round)

    def _follow(self, pieces: Sequence[Piece]) -> None: ...

    def round(self, record: RoundRecord) -> None:
        self._state.round(record)


class PlainReporter(_Following):
    """The plain reporter prints one line a round, for log files and pipes."""

    def finish(self, message: str) -> None:
        self.step(message)

    def block(self, block: Block) -> None:
        if not self._console.quiet:
            super().block(block)

    def round(self, record: RoundRecord) -> None:
        super().round(record)
        state = self._state
        parts = [
            f"{self._label}: round {record.round}/{self._rounds}",
            f"simulated {duration(record.closed_s)}",
            score_in_words(record.metrics),
            state.straggler and f"waited for {state.straggler}",
            *(f"{n} {words}" for name, words in LOSSES.items() if (n := getattr(record, name))),
        ]
        self.step(", ".join(part for part in parts if part))


class LineReporter(_Following):
    """The line reporter keeps one line up to date, for a notebook, which shows no live view."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(Console(quiet=True))
        self._stream = stream or sys.stdout
        self._width = 0

    def step(self, message: str) -> None:
        self._show(message)

    def finish(self, message: str) -> None:
        self._show(message)
        self._stream.write("\n")
        self._width = 0

    def round(self, record: RoundRecord) -> None:
        super().round(record)
        parts = [
            f"{self._label}: round {record.round}/{self._rounds}",
            f"simulated {duration(record.closed_s)}",
            score_in_words(record.metrics),
        ]
        self._show(", ".join(part for part in parts if part))

    def _show(self, line: str) -> None:
        """Write a line over the one before."""
        self._stream.write(f"\r{line:<{self._width}}")
        self._stream.flush()
        self._width = len(line)


def is_notebook() -> bool:
    """Return whether this is a cell of a notebook: IPython runs it, and for a kernel."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


class BarReporter(_Following):
    """The bar reporter shows a run live: rounds, scores, clock, who is awaited, what is lost."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._bar, self._live = _bar(console), Live(console=console)
        self._task = TaskID(0)

    def start(self, label: str, rounds: int) -> None:
        super().start(label, rounds)
        self._bar = _bar(self._console)
        self._task = self._bar.add_task(label, total=rounds)
        self._live = Live(get_renderable=self._view, console=self._console, transient=True)
        self._live.start()

    def event(self, event: Event) -> None:
        self._state.event(event)

    def _follow(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            if isinstance(piece, Event):
                self._state.event(piece)
            else:
                self._state.cohort(piece)

    def finish(self, message: str) -> None:
        self._live.stop()
        self.step(message)
        if self._state.lost:
            self.step(f"  lost: {self._state.lost}")

    def round(self, record: RoundRecord) -> None:
        super().round(record)
        self._bar.update(self._task, completed=record.round)

    def _view(self) -> RenderableType:
        """Return the bar, and below it a line for each thing there is to say."""
        state = self._state
        lines = {
            "clock": f"simulated {duration(state.at_s)}",
            "model": state.scores,
            "devices": state.in_flight,
            "awaited": state.straggler and f"{state.straggler} (last round)",
            "lost": state.lost,
        }
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(style="dim", justify="right", min_width=9, no_wrap=True)
        table.add_column(overflow="ellipsis", no_wrap=True)
        for name, words in lines.items():
            if words:
                table.add_row(name, Text(words, style="yellow" if name == "lost" else "cyan"))
        return Group(self._bar, table)


class TimeLeft(ProgressColumn):
    """This column shows the time that is left, at the pace of the rounds after the first.

    The first round also loads the model and warms up, so by its pace a run would seem to take many
    times as long. Nothing is said before the third has ended.
    """

    def __init__(self) -> None:
        super().__init__()
        self._first_s: float | None = None

    def render(self, task: Task) -> Text:
        done, elapsed_s = task.completed, task.elapsed
        if done >= 1 and self._first_s is None:
            self._first_s = elapsed_s
        if done < NUM_TIMED or elapsed_s is None or self._first_s is None or task.finished:
            return Text("")
        left_s = (elapsed_s - self._first_s) / (done - 1) * (task.remaining or 0.0)
        return Text(f"about {duration(left_s)} left", style="dim")


def _bar(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total:.0f} rounds"),
        TimeElapsedColumn(),
        TimeLeft(),
        console=console,
    )


def reporter(console: Console) -> Reporter:
    """Return a reporter that shows a live view in a terminal and prints lines elsewhere."""
    return BarReporter(console) if console.is_terminal else PlainReporter(console)
