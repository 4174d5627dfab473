"""Who is told of what happens in a run, and how many things are told at once."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from simulator.log.bulk_round import Wave
from simulator.log.records import ClientRecord, ClientTable, Event, RoundRecord


class RunLog(Protocol):
    """Whoever wants to know what happens in a run."""

    def event(self, event: Event) -> None: ...

    def client(self, record: ClientRecord) -> None: ...

    def round(self, record: RoundRecord) -> None: ...


@runtime_checkable
class WaveLog(RunLog, Protocol):
    """A log that takes many events or records at once."""

    def wave(self, wave: Wave) -> None: ...

    def client_table(self, table: ClientTable) -> None: ...


def log_wave(log: RunLog, wave: Wave) -> None:
    """Tell a log of all the events of a wave."""
    if isinstance(log, WaveLog):
        log.wave(wave)
        return
    for event in wave.events():
        log.event(event)


def log_clients(log: RunLog, table: ClientTable) -> None:
    """Tell a log of all the records of a table."""
    if isinstance(log, WaveLog):
        log.client_table(table)
        return
    for record in table.records():
        log.client(record)
