"""Token buckets are tested on a clock that moves only when they sleep."""

import socket
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.emulation.shaping import PACKET_BYTES, PAUSE_S, Bucket, receive, send
from traces.steps import StepTrace


@dataclass
class Spent:
    value: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def get_lock(self) -> AbstractContextManager[object]:
        return self.lock


@dataclass
class FakeClock:
    """On this clock every sleep ends ``late_s`` after it should."""

    at_s: float = 0.0
    late_s: float = 0.0

    def now_s(self) -> float:
        return self.at_s

    def sleep_until(self, at_s: float) -> None:
        if at_s > self.at_s:
            self.at_s = at_s + self.late_s


def sent_s(size_bytes: int, buckets: list[Bucket], clock: FakeClock) -> float:
    """Return when the last packet of a message has left."""
    ours, theirs = socket.socketpair()
    message = bytes(range(256)) * (size_bytes // 256 + 1)
    arrived: list[bytes] = []
    reader = threading.Thread(target=lambda: arrived.append(receive(theirs, size_bytes)))
    reader.start()
    with ours, theirs:
        send(ours, message[:size_bytes], buckets, clock=clock)
        reader.join()
    assert arrived == [message[:size_bytes]]
    return clock.at_s


rates = st.lists(st.sampled_from([0.0, 2e4, 1e5, 7e5]), min_size=1, max_size=6)


@given(rates, st.integers(1, 60_000), st.floats(0, 20))
def test_a_message_takes_the_integral_of_its_trace(
    rates: list[float], size_bytes: int, start_s: float
) -> None:
    trace = StepTrace(np.arange(len(rates), dtype=float), np.array(rates), float(len(rates)))
    if not any(rates):
        return
    bucket = Bucket(trace, Spent(start_s))
    needed_s = trace.time_to(size_bytes, start_s)
    assert sent_s(size_bytes, [bucket], FakeClock(start_s)) == pytest.approx(start_s + needed_s)


def test_sleeping_too_long_costs_only_the_last_packet_its_delay() -> None:
    late_s, needed_s = PACKET_BYTES / 2e5, 100 * PACKET_BYTES / 1e5
    assert late_s < PAUSE_S
    bucket, clock = Bucket(StepTrace.constant(1e5), Spent()), FakeClock(late_s=late_s)
    assert sent_s(100 * PACKET_BYTES, [bucket], clock) == pytest.approx(needed_s + late_s)


def test_an_idle_link_saves_nothing_up() -> None:
    bucket = Bucket(StepTrace.constant(1e5), Spent())
    assert bucket.take(1_000, 10.0) == pytest.approx(10.01)


def test_the_slower_of_two_buckets_on_the_way_sets_the_pace() -> None:
    own, shared = (Bucket(StepTrace.constant(rate), Spent()) for rate in (3e5, 1e5))
    size_bytes = 50 * PACKET_BYTES
    # The first packet waits for one bucket and then for the other.
    taken_s = size_bytes / 1e5 + PACKET_BYTES / 3e5
    assert sent_s(size_bytes, [own, shared], FakeClock()) == pytest.approx(
        taken_s, abs=PACKET_BYTES / 1e5
    )


def test_senders_that_share_a_bucket_get_max_min_shares() -> None:
    """Two with fast links and one that is slow by itself: 100, 250 and 250 of 600 kB/s."""
    shared = Bucket(StepTrace.constant(6e5), Spent())
    rates = (1e5, 1e6, 1e6)
    own = [Bucket(StepTrace.constant(rate), Spent()) for rate in rates]
    # The instant at which each sender's next packet may ask for the shared bucket.
    asks_s = [bucket.take(PACKET_BYTES, 0.0) for bucket in own]
    num_sent = [0, 0, 0]
    while (at_s := min(asks_s)) < 10.0:
        sender = asks_s.index(at_s)
        gone_s = shared.take(PACKET_BYTES, at_s)
        num_sent[sender] += 1
        asks_s[sender] = max(gone_s, own[sender].take(PACKET_BYTES, gone_s))
    shares = [count * PACKET_BYTES / 10.0 for count in num_sent]
    # Each may have one packet more or less, 205 bytes/s.
    assert shares == pytest.approx([1e5, 2.5e5, 2.5e5], abs=2 * PACKET_BYTES / 10)


def test_a_peer_that_hangs_up_is_an_error_that_says_what_lacks() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        with pytest.raises(ConnectionError, match="its whole message, 5 bytes lack"):
            receive(theirs, 5)
