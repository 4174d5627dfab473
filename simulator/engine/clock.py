"""Waits on the simulated clock, logs scheduled faults, and finds runs that cannot go on."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import numpy as np
import simpy
from simpy.events import EventPriority

from devices.vocabulary.plan import DeviceId
from simulator.config.problems import UserError
from simulator.engine.faults import Faults
from simulator.log.records import Ended, Outcome, RoundProgress

Steps = Generator[simpy.Event, Any, None]
MAX_FAILED = 100
"""The most failures of a device in one round, on average over the fleet."""
MAX_VOID = 20
"""The most rounds in a row without a plan: a strategy that draws may plan the next time."""
ADVICE: Mapping[Outcome, str] = {
    "offline": "keep devices there for longer, or set fleet.when_offline to resume",
    "crashed": "let devices crash less often",
    "oom": "leave devices more memory, or set fleet.when_out_of_memory to shrink",
    "lost": "keep devices and their links there for as long as a phase of a plan takes, or set "
    "fleet.when_offline and faults.cut_transfers to resume",
}
"""Advice on a round that would never close, by the most frequent outcome of its plans."""


class StalledError(UserError):
    """This error says that a run cannot go on: no device will come, or plans fail repeatedly."""


def at_this_instant(
    env: simpy.Environment,
    act: Callable[[simpy.Event], None],
    priority: EventPriority = simpy.events.URGENT,
) -> None:
    """Call something at this instant, by default once the process that is running waits again."""
    event = simpy.Event(env)
    event._ok, event._value = True, None
    event.callbacks.append(act)
    env.schedule(event, priority)


class Mailbox:
    """A mailbox keeps what is put in until its one reader takes it, in order."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env, self._kept = env, deque[Any]()
        self._bell: simpy.Event | None = None  # the event that the reader waits for

    def put(self, item: Any) -> None:
        """Put an item in, and wake up the reader if it waits."""
        self._kept.append(item)
        self._ring()

    def bell(self) -> simpy.Event:
        """Return an event that happens once there is an item to take.

        A later call replaces the event, and the earlier one then never happens.
        """
        bell = self._bell = self._env.event()
        self._ring()
        return bell

    def take(self) -> Any:
        """Remove the first item and return it."""
        return self._kept.popleft()

    def _ring(self) -> None:
        if self._bell is not None and self._kept:
            self._bell.succeed()
            self._bell = None


def sleep_until(env: simpy.Environment, at_s: float) -> Steps:
    """Wait until the clock shows ``at_s``: a single timeout may fall short of it by rounding."""
    while env.now < at_s:
        yield env.timeout(at_s - env.now)


def note_faults(
    env: simpy.Environment,
    faults: Faults,
    note: Callable[[str, Mapping[str, Any], DeviceId | None], None],
) -> Steps:
    """Log who joins late, who leaves for good and each restart of the server, at its instant."""
    happened: list[tuple[float, str, DeviceId | None, Mapping[str, Any]]] = [
        (start_s + down_s, "server_restarted", None, {"down_s": down_s})
        for start_s, down_s in faults.server.given_within(np.inf)
    ]
    for name, moments_s in (("joined", faults.join_s), ("left", faults.leave_s)):
        devices = np.flatnonzero((moments_s > 0) & np.isfinite(moments_s)).tolist()
        happened += [(float(moments_s[device]), name, device, {}) for device in devices]
    for at_s, name, device, details in sorted(happened, key=lambda one: one[:2]):
        yield from sleep_until(env, at_s)
        note(name, details, device)


def check_arrival(round_number: int, now_s: float, arrival_s: float) -> None:
    """Raise StalledError where no device is present and none will ever come."""
    if math.isinf(arrival_s):
        raise StalledError(
            f"round {round_number}: no device is present at {now_s:.6g} s, and none "
            f"will come any more; let traces loop, run fewer rounds, or lose fewer devices"
        )


class VoidRounds:
    """This counter counts rounds in a row that closed at one instant without any plan."""

    _num = 0

    def closed(self, record: RoundProgress) -> None:
        """Count a round that has closed. Raises StalledError where too many had no plan."""
        is_void = not record.num_planned and record.closed_s == record.opened_s
        self._num = self._num + 1 if is_void else 0
        if self._num > MAX_VOID:
            raise StalledError(
                f"round {record.round}: at most {MAX_VOID} rounds in a row may close at one "
                f"instant without a plan, got {self._num} at {record.closed_s:.6g} s: every device "
                f"that is there sits out, and no other will come; leave devices more memory, or "
                f"keep those there that can hold a plan of this strategy"
            )


def check_progress(round_number: int, ended: Sequence[Ended], *, num_devices: int) -> None:
    """Raise StalledError where so many plans failed that the round would never close."""
    if len(ended) <= MAX_FAILED * num_devices:
        return
    outcomes = Counter(record.outcome for record in ended if record.outcome != "aggregated")
    if outcomes.total() > MAX_FAILED * num_devices:
        said = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.most_common())
        raise StalledError(
            f"round {round_number}: at most {MAX_FAILED} plans for each of the {num_devices} "
            f"devices may fail in one round, got {outcomes.total()} ({said}); give rounds a "
            f"deadline, or " + ADVICE[outcomes.most_common(1)[0][0]]
        )
