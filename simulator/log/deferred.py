"""Gathers a log in order: an evaluation may be under way, and many rounds are written together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from devices.fleet.fleet import Fleet
from devices.tasks.task import Metric
from devices.vocabulary.trainer import Evaluation
from simulator.log.block import Block, Piece
from simulator.log.cohort_records import client_table, concatenated, in_order_of_ends, table_of
from simulator.log.cohort_timeline import CohortTimeline, in_order
from simulator.log.protocol import Tee
from simulator.log.records import ClientTable, Ended, Event, RoundProgress
from simulator.log.round_table import RoundTable

GATHERED = 4_096
"""The number of events after which a log that gathers writes them."""
Metrics = Mapping[Metric, float]


class RoundEnd(NamedTuple):
    """The end of a round is what the engine tells of it."""

    progress: RoundProgress
    ended: Sequence[Ended]  # plans that were simulated one by one, in order of their ends
    timeline: CohortTimeline | None  # plans that were worked out together
    metrics: Callable[[], Metrics]  # called once the evaluation of the round is known


class _Awaited(NamedTuple):
    """An awaited evaluation is under way, and will give an event at a place among the pieces."""

    evaluation: Future[Evaluation]
    note: Callable[[Evaluation], Event]
    place: int
    num_rounds: int  # the number of rounds that closed before it


class DeferredLog:
    """A deferred log passes everything on in order, later where an evaluation is under way.

    Where it ``gathers``, it passes on many rounds at once. Whatever writing raises, or the
    evaluation, is raised by whichever call comes upon it, and nothing that waited behind it is
    written. Use as a context manager: in the end all is written.
    """

    def __init__(self, log: Tee, fleet: Fleet, *, gathers: bool) -> None:
        self._log, self._fleet, self._gathers = log, fleet, gathers
        self._pieces: list[Piece] = []
        self._rounds: list[tuple[int, RoundEnd]] = []  # number of pieces before each end, the end
        self._num_events = 0  # number of events of cohorts among the pieces
        self._awaited: _Awaited | None = None
        self._held_from: int | None = None  # the first held piece, while a timeline is under way
        self._num_before_cut: int | None = None

    def __enter__(self) -> DeferredLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.flush()
        elif issubclass(kind, Exception):  # after an interrupt the evaluation is not waited for
            with suppress(Exception):  # the first error is the one to report
                self.flush()

    def event(self, event: Event) -> None:
        """Take an event, at an instant not before that of the last one."""
        if self._awaited and self._awaited.evaluation.done():
            self.settle()
        if self._gathers or self._awaited:
            self._pieces.append(event)
        else:
            self._log.event(event)

    def hold(self) -> None:
        """Keep the events from now on, since those of a timeline will lie among them."""
        self._held_from, self._num_before_cut = len(self._pieces), None

    def cut(self) -> None:
        """Take note that the server has stopped waiting for plans of the timeline."""
        if self._held_from is not None:
            self._num_before_cut = len(self._pieces) - self._held_from

    def release(self, timeline: CohortTimeline) -> None:
        """Put the events of the timeline among those that were kept."""
        held = self._pieces[self._held_from :]
        before = len(held) if self._num_before_cut is None else self._num_before_cut
        self._pieces[self._held_from :] = [in_order(timeline, _events(held), before)]
        self._held_from = None
        self._num_events += len(timeline.happenings[0])

    def settle(self) -> None:
        """Wait for the evaluation that is under way, and log it and what follows on it."""
        self._place()
        if not self._gathers:
            self._write()

    def once(self, evaluation: Future[Evaluation], note: Callable[[Evaluation], Event]) -> None:
        """Log the event that ``note`` makes of the evaluation, at this place in the log.

        One evaluation is awaited at a time.
        """
        self.settle()
        self._awaited = _Awaited(evaluation, note, len(self._pieces), len(self._rounds))
        if evaluation.done():
            self.settle()

    def close(self, end: RoundEnd) -> None:
        """Take the end of a round, after all its events."""
        self._rounds.append((len(self._pieces), end))
        if self._awaited and self._awaited.evaluation.done():
            self._place()
        is_full = len(self._pieces) + self._num_events >= GATHERED
        if not self._awaited and (is_full or not self._gathers):
            self._write()

    def flush(self) -> None:
        """Write everything, and wait for the evaluation where needed."""
        self._place()
        self._write()

    def _place(self) -> None:
        """Put the event of an evaluation in its place, once that is known."""
        if self._awaited is None:
            return
        (evaluation, note, place, num_rounds), self._awaited = self._awaited, None
        try:
            self._pieces.insert(place, note(evaluation.result()))
        except BaseException:
            del self._pieces[place:], self._rounds[num_rounds:]
            raise
        self._rounds[num_rounds:] = [(k + 1, end) for k, end in self._rounds[num_rounds:]]
        if self._held_from is not None:
            self._held_from += 1

    def _write(self) -> None:
        pieces, rounds = self._pieces[: self._held_from], self._rounds
        self._pieces, self._rounds, self._num_events = [], [], 0
        if pieces or rounds:
            self._log.block(_block(self._fleet, pieces, rounds))


def _events(pieces: Sequence[Piece]) -> list[Event]:
    return [one for one in pieces if isinstance(one, Event)]


def _block(fleet: Fleet, pieces: Sequence[Piece], rounds: Sequence[tuple[int, RoundEnd]]) -> Block:
    ends = [end for _, end in rounds]
    tables, counts = _tables(fleet, ends)
    clients, client_ends = concatenated(tables), np.cumsum(counts, dtype=np.int64)
    found = [end.metrics() for end in ends]
    metrics = {metric: np.array([one[metric] for one in found]) for metric in (found or [{}])[0]}
    table = RoundTable.of([end.progress for end in ends], clients, client_ends, metrics)
    piece_ends = (num_pieces for num_pieces, _ in rounds)
    return Block(pieces, clients, table, list(zip(piece_ends, client_ends.tolist(), strict=True)))


def _tables(fleet: Fleet, ends: Sequence[RoundEnd]) -> tuple[list[ClientTable], list[int]]:
    """Return the plans that ended in tables, at least one, and their number in each round."""
    tables: list[ClientTable] = []
    one_by_one: list[Ended] = []  # plans of rounds without a timeline
    counts = []
    for end in ends:
        if end.timeline is None:
            one_by_one += end.ended
            counts.append(len(end.ended))
            continue
        if one_by_one:
            tables.append(table_of(fleet, one_by_one))
            one_by_one = []
        table = client_table(end.timeline, end.progress.closed_s)
        if end.ended:
            table = in_order_of_ends(table, table_of(fleet, end.ended))
        tables.append(table)
        counts.append(len(table))
    if one_by_one or not tables:
        tables.append(table_of(fleet, one_by_one))
    return tables, counts
