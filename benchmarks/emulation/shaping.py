"""Links of real sockets: a sender waits, packet by packet, for the tokens of a token bucket."""

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
"""How long a sender may keep a bucket waiting, since it slept too long or stands before another
bucket, and yet lose no tokens. Beyond it the link was idle, and an idle link saves nothing up."""


class Clock(Protocol):
    """Seconds since a federation began."""

    def now_s(self) -> float: ...

    def sleep_until(self, at_s: float) -> None: ...


@dataclass(frozen=True)
class WallClock:
    """The machine's monotonic clock, which all processes share; 0 at ``origin_s`` of it."""

    origin_s: float

    def now_s(self) -> float:
        return time.monotonic() - self.origin_s

    def sleep_until(self, at_s: float) -> None:
        while (left_s := at_s - self.now_s()) > 0:
            time.sleep(min(left_s, 60.0))


class Spent(Protocol):
    """The instant up to which a bucket's tokens are spent, a ``multiprocessing.Value`` of kind d:
    processes that share a link share it."""

    value: float

    def get_lock(self) -> AbstractContextManager[object]: ...


class Bucket:
    """Tokens for bytes, which come at the rate of a trace."""

    def __init__(self, trace: StepTrace, spent: Spent) -> None:
        self._trace, self._spent = trace, spent

    def take(self, size_bytes: int, now_s: float) -> float:
        """The instant at which tokens for so many bytes have come, beside all taken before."""
        with self._spent.get_lock():
            spent_s = self._spent.value
            start_s = spent_s if now_s - spent_s <= PAUSE_S else now_s
            self._spent.value = start_s + self._trace.time_to(size_bytes, start_s)
            return self._spent.value


def send(
    connection: socket.socket, message: bytes, ways: Sequence[Bucket], *, clock: Clock
) -> None:
    """Send no packet before every bucket on its way has let it pass.

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
    """The next so many bytes. Raises ConnectionError where the other side ends before."""
    parts: list[bytes] = []
    while size_bytes:
        part = connection.recv(min(size_bytes, 1 << 16))
        if not part:
            raise ConnectionError(f"a peer must send its whole message, {size_bytes} bytes lack")
        parts.append(part)
        size_bytes -= len(part)
    return b"".join(parts)
