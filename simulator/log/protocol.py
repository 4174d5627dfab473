"""States what a log is told of a run, in which order, and passes one call to several logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from simulator.log.block import Block
from simulator.log.records import ClientRecord, Event, RoundRecord


class RunLog(Protocol):
    """A log is told of everything that happens in one run.

    **Order.** For each round, from round 0, which is the initial model: first its events, then one
    record for each plan that ended in it, then the record of the round. Events come in order of
    simulated time, and so do rounds. The calls may come later than the engine gets there, since
    what follows an evaluation waits until its numbers are known, and rounds of a run that trains
    nothing are told several at a time; their order stays the same.

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
class BlockLog(Protocol):
    """A block log takes what rounds leave in one call; a ``RunLog`` takes it item by item.

    Order, guarantees, units and errors are those of a ``RunLog``.
    """

    def event(self, event: Event) -> None:
        """Take an event that is known before its round has closed."""
        ...

    def block(self, block: Block) -> None:
        """Take the events, plans and records of rounds that follow on what was told before."""
        ...


Log = RunLog | BlockLog
"""A log of either kind."""


def log_block(log: Log, block: Block) -> None:
    """Tell a log of all that a block holds."""
    if isinstance(log, BlockLog):
        log.block(block)
        return
    for one in block.each_round():
        for event in one.events:
            log.event(event)
        for record in one.clients.records():
            log.client(record)
        if one.round:
            log.round(one.round)


class Tee:
    """A tee passes each call to several logs, in their order."""

    def __init__(self, logs: Sequence[Log]) -> None:
        self._logs = logs

    def event(self, event: Event) -> None:
        for log in self._logs:
            log.event(event)

    def block(self, block: Block) -> None:
        for log in self._logs:
            log_block(log, block)
