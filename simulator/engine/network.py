"""Shares a cell's or the server's link among the transfers that need it at one time.

Max-min fairness (Bertsekas and Gallager, "Data Networks", 1992, section 6.5.2): every flow goes as
fast as its own link lets it, or as its fair share of the fullest capacity on its way does. Of one
capacity, where the flows have no limits of their own, this is processor sharing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import simpy

from devices.vocabulary.plan import DeviceId
from simulator.engine.clock import sleep_until
from traces.arrays import IntArray
from traces.bandwidth import Link
from traces.steps import StepTrace

Direction = Literal["download", "upload"]
Steps = Generator[simpy.Event, Any, bool]


@dataclass(frozen=True, eq=False)
class SharedLinks:
    """Shared links are what transfers compete for: the server's link, and cells of some devices."""

    server: Link | None = None
    cells: tuple[Link, ...] = ()
    cell_index: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # -1: none

    @property
    def is_nothing(self) -> bool:
        """Return True where no transfer shares a link."""
        return self.server is None and not self.cells

    def of(self, device_id: DeviceId) -> tuple[Link, ...]:
        """Return the links that the transfers of a device share with others."""
        cell = int(self.cell_index[device_id]) if self.cells else -1
        links = (self.cells[cell] if cell >= 0 else None, self.server)
        return tuple(link for link in links if link is not None)

    def hash_into(self, sha: hashlib._Hash) -> None:
        """Add traces and cells to a hash of the conditions; nothing where nothing is shared."""
        for link in (self.server, *self.cells):
            if link is not None:
                for trace in (link.downlink, link.uplink):
                    sha.update(repr((trace.period_s, trace.offset_s)).encode())
                    sha.update(trace.time_s.tobytes() + trace.rate_bytes_per_s.tobytes())
        if self.cells:
            sha.update(self.cell_index.tobytes())


NOTHING_SHARED = SharedLinks()


class Segment(Protocol):
    """A segment is an uncut part of a phase, in which an amount of bytes or work is done."""

    @property
    def needed_s(self) -> float:
        """Return the least seconds that the whole amount takes; ``inf`` where it never ends."""
        ...

    def until(self, cut_s: float) -> Steps:
        """Wait until the amount is done or ``cut_s`` has come; return True where it is done."""
        ...

    def moved(self) -> float:
        """Return the amount that is done so far."""
        ...

    def end(self) -> None:
        """End the segment, done or cut."""
        ...


def shown_s(needed_s: float, now_s: float) -> float:
    """Return ``needed_s``, or one step of the clock where that is longer.

    At 1e9 s the clock moves in steps of 1.2e-7 s. A shorter time would round to none, and a rate
    measured over it would be no number.
    """
    return needed_s if needed_s == 0 or now_s + needed_s > now_s else math.ulp(now_s)


class Unshared:
    """An unshared segment depends on no other device, so its duration is known as it begins."""

    def __init__(self, env: simpy.Environment, trace: StepTrace, amount: float) -> None:
        self._env, self._trace, self._started_s = env, trace, env.now
        self.needed_s = shown_s(trace.time_to(amount, env.now), env.now)

    def until(self, cut_s: float) -> Steps:
        is_whole = self._started_s + self.needed_s <= cut_s
        if is_whole:
            yield self._env.timeout(self.needed_s)
        else:
            yield from sleep_until(self._env, cut_s)
        return is_whole

    def moved(self) -> float:
        return self._trace.amount(self._env.now) - self._trace.amount(self._started_s)

    def end(self) -> None:
        pass


class Flow:
    """A flow is a transfer that shares capacities; its rate holds until the network changes."""

    def __init__(
        self, network: Network, own: StepTrace, shared: Sequence[StepTrace], amount: float
    ) -> None:
        self._network, self._amount = network, amount
        self.own, self.shared = own, shared
        self.left = float(amount)
        self.rate = 0.0
        self.finish_s = math.inf
        self.whole = network.env.event()
        now_s = network.env.now
        needed_s = max(trace.time_to(amount, now_s) for trace in (self.own, *self.shared))
        self.needed_s = shown_s(needed_s, now_s)
        self._earliest_s = math.nextafter(now_s, math.inf) if amount > 0 else now_s
        network.join(self)

    def until(self, cut_s: float) -> Steps:
        env = self._network.env
        if math.isinf(cut_s):
            yield self.whole
        while not self.whole.triggered and env.now < cut_s:
            yield self.whole | env.timeout(cut_s - env.now)
            self._network.settle()  # it may end at the instant of the cut
        return bool(self.whole.triggered)

    def whole_at_s(self, now_s: float) -> float:
        """Return the instant at which the flow ends if its rate stays; ``inf`` if that is 0."""
        return max(now_s + self.left / self.rate, self._earliest_s) if self.rate else math.inf

    def moved(self) -> float:
        self._network.settle()
        return self._amount - self.left

    def end(self) -> None:
        self._network.leave(self)


class Network:
    """The network holds all flows, and moves them from one change of rates to the next."""

    def __init__(self, env: simpy.Environment) -> None:
        self.env = env
        self._flows: dict[Flow, None] = {}  # in order of arrival
        self._settled_s = 0.0
        self._alarm_s = math.inf  # the latest alarm; those set before it are stale

    def join(self, flow: Flow) -> None:
        """Add a flow, and share the capacities anew."""
        self.settle()
        self._flows[flow] = None
        self._share_out()

    def leave(self, flow: Flow) -> None:
        """Remove a flow, done or cut, and give its share to the others."""
        if flow in self._flows:
            self.settle()
            self._flows.pop(flow, None)
            self._share_out()

    def settle(self) -> None:
        """Advance the bytes of every flow up to now, and remove the flows that are done."""
        elapsed_s, self._settled_s = self.env.now - self._settled_s, self.env.now
        for flow in list(self._flows):
            flow.left = max(flow.left - flow.rate * elapsed_s, 0.0)
            if flow.finish_s <= self.env.now:
                flow.left = 0.0
                del self._flows[flow]
                flow.whole.succeed()

    def _share_out(self) -> None:
        """Set the rates from now on, and an alarm for the next instant at which one may change."""
        now_s = self.env.now
        rates = fair_rates(
            [flow.own.at(now_s) for flow in self._flows],
            [flow.shared for flow in self._flows],
            {trace: trace.at(now_s) for trace in self._traces_shared()},
        )
        for flow, rate in zip(self._flows, rates, strict=True):
            flow.rate = rate
            flow.finish_s = flow.whole_at_s(now_s)
        ends_s = [flow.finish_s for flow in self._flows]
        edges_s = [flow.own.next_change_s(now_s) for flow in self._flows]
        edges_s += [trace.next_change_s(now_s) for trace in self._traces_shared()]
        self._set_alarm(min(ends_s + edges_s, default=math.inf))

    def _traces_shared(self) -> Iterator[StepTrace]:
        return iter(dict.fromkeys(trace for flow in self._flows for trace in flow.shared))

    def _set_alarm(self, at_s: float) -> None:
        self._alarm_s = at_s
        if math.isfinite(at_s):
            alarm = self.env.timeout(max(at_s - self.env.now, 0.0))
            alarm.callbacks.append(lambda _: self._ring(at_s))

    def _ring(self, at_s: float) -> None:
        if at_s != self._alarm_s:
            return
        for flow in self._flows:
            if flow.finish_s <= at_s:  # the clock may stand a rounding short of it
                flow.finish_s = self.env.now
        self.settle()
        self._share_out()


def fair_rates(
    caps: Sequence[float],
    ways: Sequence[Sequence[StepTrace]],
    capacities: Mapping[StepTrace, float],
) -> list[float]:
    """Return the max-min fair rates: no flow could be faster but at the expense of a slower one.

    ``caps`` is what each flow's own link allows, ``ways`` the capacities that it shares. All rates
    rise alike until a cap or a capacity is reached; who is held by it stays, the others go on.
    """
    rates = list(caps)
    rising = dict.fromkeys(sorted(range(len(caps)), key=lambda flow: (caps[flow], flow)))
    room = dict(capacities)
    users: dict[StepTrace, dict[int, None]] = {trace: {} for trace in capacities}
    for flow in rising:
        for trace in ways[flow]:
            users[trace][flow] = None
    while rising:
        slowest = next(iter(rising))
        level, fullest = math.inf, None
        for trace, sharing in users.items():
            if sharing and room[trace] / len(sharing) < level:
                level, fullest = room[trace] / len(sharing), trace
        is_capped = fullest is None or caps[slowest] <= level
        held = [slowest] if is_capped or fullest is None else list(users[fullest])
        for flow in held:
            rates[flow] = caps[slowest] if is_capped else level
            del rising[flow]
            for trace in ways[flow]:
                room[trace] = max(room[trace] - rates[flow], 0.0)
                del users[trace][flow]
    return rates
