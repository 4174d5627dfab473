"""Who is told of what happens in a run, and how many things are told at once."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from simulator.log.cohort_timeline import CohortEvents
from simulator.log.records import ClientRecord, ClientTable, Event, RoundRecord


class RunLog(Protocol):
    """Whoever wants to know what happens in a run."""

    def event(self, event: Event) -> None: ...

    def client(self, record: ClientRecord) -> None: ...

    def round(self, record: RoundRecord) -> None: ...


@runtime_checkable
class CohortLog(RunLog, Protocol):
    """A log that takes many events or records at once."""

    def cohort(self, events: CohortEvents) -> None: ...

    def client_table(self, table: ClientTable) -> None: ...


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
