"""States what a log is told of a run, in which order, and passes one call to several logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from simulator.log.cohort_timeline import CohortEvents
from simulator.log.records import ClientRecord, ClientTable, Event, RoundRecord


class RunLog(Protocol):
    """A log is told of everything that happens in one run.

    **Order.** For each round, from round 0, which is the initial model: first its events, then one
    record for each plan that ended in it, then the record of the round. Events come in order of
    simulated time, and so do rounds. The calls may come later than the engine gets there, since
    what follows an evaluation waits until its numbers are known; their order stays the same.

    **Guarantees.** A plan that begins has one ``download_started`` event, or one more each time
    that it is made smaller, and one client record, whatever its outcome. Rounds are numbered
    without a gap. All calls come from the thread that called ``simulate``, and all numbers follow
    from config and seed alone. A record is final when it is given; a log must not change it.

    **Units.** Instants (``*_at_s``, ``opened_s``, ``closed_s``) are seconds of the simulated clock,
    which begins at 0; sizes are bytes, work is FLOPs, energy is joules. A value that is not known
    is NaN.

    **Errors.** Whatever a method raises ends the run: ``simulate`` raises it, and tells no log
    anything more. The invariants of a run are checked on what its logs were told, so they have what
    breaks a rule before InvariantError is raised. No call says that a run is over or was broken
    off: a log that must tidy up is closed by whoever opened it.
    """

    def event(self, event: Event) -> None:
        """Take an event, at an instant not before that of the last one."""
        ...

    def client(self, record: ClientRecord) -> None:
        """Take the record of a plan as its round closes; in order of the plans' ends."""
        ...

    def round(self, record: RoundRecord) -> None:
        """Take the record of a round that has closed, after all its events and plans."""
        ...


@runtime_checkable
class CohortLog(RunLog, Protocol):
    """A log that takes the events or the records of many plans in one call, held in arrays.

    A log without these methods is told the same, one event and one record after the other.
    """

    def cohort(self, events: CohortEvents) -> None:
        """Take the events of many plans and those between them, instead of a call for each."""
        ...

    def client_table(self, table: ClientTable) -> None:
        """Take the records of all plans of a round, instead of a call of ``client`` for each."""
        ...


def log_cohort(log: RunLog, events: CohortEvents) -> None:
    """Tell a log of the events of a round whose plans were worked out ahead."""
    if isinstance(log, CohortLog):
        log.cohort(events)
        return
    for event in events:
        log.event(event)


def log_clients(log: RunLog, table: ClientTable) -> None:
    """Tell a log of all the records of a table."""
    if isinstance(log, CohortLog):
        log.client_table(table)
        return
    for record in table.records():
        log.client(record)


class Tee:
    """A tee passes each call to several logs, in their order."""

    def __init__(self, logs: Sequence[RunLog]) -> None:
        self._logs = logs

    def event(self, event: Event) -> None:
        for log in self._logs:
            log.event(event)

    def client(self, record: ClientRecord) -> None:
        for log in self._logs:
            log.client(record)

    def cohort(self, events: CohortEvents) -> None:
        for log in self._logs:
            log_cohort(log, events)

    def client_table(self, table: ClientTable) -> None:
        for log in self._logs:
            log_clients(log, table)

    def round(self, record: RoundRecord) -> None:
        for log in self._logs:
            log.round(record)
