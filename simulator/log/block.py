"""Holds what several rounds in a row leave: events, the plans that ended, records of the rounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from simulator.log.cohort_timeline import CohortEvents
from simulator.log.records import ClientTable, Event, RoundRecord
from simulator.log.round_table import RoundTable

Piece = Event | CohortEvents
"""A piece of a log of events is one event, or those of a cohort whose plans were worked out."""


class OneRound(NamedTuple):
    """One round is what a round leaves; the last one of a block may not have closed yet."""

    pieces: Sequence[Piece]
    clients: ClientTable
    round: RoundRecord | None

    @property
    def events(self) -> Iterator[Event]:
        """Return an iterator over the events in order."""
        return chain.from_iterable([one] if isinstance(one, Event) else one for one in self.pieces)


@dataclass(frozen=True, eq=False)
class Block:
    """A block holds what m rounds leave, and the events of a next round that has not closed.

    ``ends`` has for each round how many pieces and how many clients there are up to its end.
    """

    pieces: Sequence[Piece]
    clients: ClientTable
    rounds: RoundTable
    ends: Sequence[tuple[int, int]]

    def each_round(self) -> Iterator[OneRound]:
        """Return what each round leaves, then what follows on the last."""
        piece = client = 0
        for k, (piece_end, client_end) in enumerate(self.ends):
            clients = self.clients.rows(slice(client, client_end))
            yield OneRound(self.pieces[piece:piece_end], clients, self.rounds.record(k))
            piece, client = piece_end, client_end
        if rest := self.pieces[piece:]:
            yield OneRound(rest, self.clients.rows(slice(0, 0)), None)
