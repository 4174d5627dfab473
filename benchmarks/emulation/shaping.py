"""Shapes the links of real sockets: a sender waits for the tokens of a token bucket."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from traces.steps import StepTrace

PACKET_BYTES = 2_048
PAUSE_S = 0.05
"""The pause after which a bucket counts as idle and saves up no more tokens. A shorter one may come
from a sleep that took too long, or from a wait for another bucket."""


class Clock(Protocol):
    """A clock tells the seconds since a federation began."""

    def now_s(self) -> float: ...

    def sleep_until(self, at_s: float) -> None: ...


@dataclass(frozen=True)
class WallClock:
    """This is the machine's monotonic clock, which all processes share; it is 0 at ``origin_s``."""

    origin_s: float

    def now_s(self) -> float:
        return time.monotonic() - self.origin_s

    def sleep_until(self, at_s: float) -> None:
        while (left_s := at_s - self.now_s()) > 0:
            time.sleep(min(left_s, 60.0))


class Spent(Protocol):
    """This is the instant up to which a bucket's tokens are spent.

    It is a ``multiprocessing.Value`` of kind d, which processes share that share a link.
    """

    value: float

    def get_lock(self) -> AbstractContextManager[object]: ...


class Bucket:
    """A bucket holds tokens for bytes, which come at the rate of a trace."""

    def __init__(self, trace: StepTrace, spent: Spent) -> None:
        self._trace, self._spent = trace, spent

    def take(self, size_bytes: int, now_s: float) -> float:
        """Take tokens for so many bytes, and return the instant at which they have come."""
        with self._spent.get_lock():
            spent_s = self._spent.value
            start_s = spent_s if now_s - spent_s <= PAUSE_S else now_s
            self._spent.value = start_s + self._trace.time_to(size_bytes, start_s)
            return self._spent.value


def send(
    connection: socket.socket, message: bytes, ways: Sequence[Bucket], *, clock: Clock
) -> None:
    """Send data packet by packet, each once every bucket on its way has tokens for it.

    Whoever shares a bucket has one packet in its queue at a time, so that those who wait for it
    get equal shares, and those whose own link is slower keep what that gives: max-min fairness.
    """
    view = memoryview(message)
    for first in range(0, len(view), PACKET_BYTES):
        packet = view[first : first + PACKET_BYTES]
        for bucket in ways:
            clock.sleep_until(bucket.take(len(packet), clock.now_s()))
        connection.sendall(packet)


def receive(connection: socket.socket, size_bytes: int) -> bytes:
    """Return the next so many bytes. Raises ConnectionError where the other side ends before."""
    parts: list[bytes] = []
    while size_bytes:
        part = connection.recv(min(size_bytes, 1 << 16))
        if not part:
            raise ConnectionError(f"a peer must send its whole message, {size_bytes} bytes lack")
        parts.append(part)
        size_bytes -= len(part)
    return b"".join(parts)
