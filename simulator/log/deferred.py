"""Keeps a log in order while an evaluation is under way, so that the run need not wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial

from devices.vocabulary.trainer import Evaluation
from simulator.log.cohort_timeline import CohortEvents, CohortTimeline, in_order
from simulator.log.protocol import RunLog, log_clients, log_cohort
from simulator.log.records import ClientRecord, ClientTable, Event, RoundRecord


class DeferredLog:
    """A deferred log passes everything on in order, later where an evaluation is under way.

    Whatever writing raises, or the evaluation, is raised by whichever call comes upon it, and
    nothing that waited behind it is written. Use as a context manager: in the end all is written.
    """

    def __init__(self, log: RunLog) -> None:
        self.log = log
        self._held: list[Event] | None = None  # while a cohort's timeline is under way
        self._num_before_cut: int | None = None
        self._waiting: deque[tuple[Future[Evaluation] | None, Callable[..., None]]] = deque()

    def __enter__(self) -> DeferredLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.flush()
        elif issubclass(kind, Exception):  # who interrupts a run does not want to wait
            with suppress(Exception):  # the first is what is to be said
                self.flush()

    def event(self, event: Event) -> None:
        if self._held is not None:
            self._held.append(event)
        elif self._waiting:
            self._then(partial(self.log.event, event))
        else:
            self.log.event(event)

    def client(self, record: ClientRecord) -> None:
        self._then(partial(self.log.client, record))

    def round(self, record: RoundRecord) -> None:
        self._then(partial(self.log.round, record))

    def hold(self) -> None:
        """Keep the events from now on, since those of a timeline will lie among them."""
        self._held, self._num_before_cut = [], None

    def cut(self) -> None:
        """Take note that the server has stopped waiting for plans of the timeline."""
        if self._held is not None:
            self._num_before_cut = len(self._held)

    def release(self, timeline: CohortTimeline) -> None:
        """Pass on the events that were kept, and those of the timeline among them."""
        held, self._held = self._held or [], None
        before = len(held) if self._num_before_cut is None else self._num_before_cut
        self.cohort(in_order(timeline, held, before))

    def cohort(self, events: CohortEvents) -> None:
        self._then(partial(log_cohort, self.log, events))

    def client_table(self, table: ClientTable) -> None:
        self._then(partial(log_clients, self.log, table))

    def once(self, evaluation: Future[Evaluation], write: Callable[[Evaluation], None]) -> None:
        """Call ``write`` when the evaluation is known, and all before it is written."""
        self._waiting.append((evaluation, write))
        self._write(lambda pending: pending.done())

    def flush(self) -> None:
        """Write everything, and wait for the evaluations where needed."""
        self._write(lambda pending: True)

    def _then(self, write: Callable[[], None]) -> None:
        if not self._waiting:
            write()
            return
        self._waiting.append((None, write))
        self._write(lambda pending: pending.done())

    def _write(self, may_ask: Callable[[Future[Evaluation]], bool]) -> None:
        while self._waiting:
            evaluation, write = self._waiting[0]
            if evaluation and not may_ask(evaluation):
                return
            try:
                write(*([evaluation.result()] if evaluation else []))
                self._waiting.popleft()
            except BaseException:
                self._waiting.clear()
                raise
