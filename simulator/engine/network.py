"""Shares a cell's or the server's link among the transfers that need it at one time.

Max-min fairness (Bertsekas and Gallager, "Data Networks", 1992, section 6.5.2): every flow goes as
fast as its own link lets it, or as its fair share of the fullest capacity on its way does. Of one
capacity, where the flows have no limits of their own, this is processor sharing.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import simpy

from devices.vocabulary.plan import DeviceId
from simulator.engine.clock import sleep_until
from traces.arrays import BoolArray, FloatArray, IntArray
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
        self.left = float(amount)  # as of when the flow joined or ended
        self.whole = network.env.event()
        now_s = network.env.now
        needed_s = max(trace.time_to(amount, now_s) for trace in (self.own, *self.shared))
        self.needed_s = shown_s(needed_s, now_s)
        self.earliest_s = math.nextafter(now_s, math.inf) if amount > 0 else now_s
        network.join(self)

    def until(self, cut_s: float) -> Steps:
        env = self._network.env
        if math.isinf(cut_s):
            yield self.whole
        while not self.whole.triggered and env.now < cut_s:
            yield self.whole | env.timeout(cut_s - env.now)
            self._network.settle()  # it may end at the instant of the cut
        return bool(self.whole.triggered)

    def moved(self) -> float:
        return self._amount - self._network.left(self)

    def end(self) -> None:
        self._network.leave(self)


class Network:
    """The network holds all flows, and moves them from one change of rates to the next.

    Its arrays have an entry for each of the n flows, in order of arrival. What an event costs grows
    with n only inside numpy.
    """

    def __init__(self, env: simpy.Environment) -> None:
        self.env = env
        self._flows: list[Flow] = []
        nothing = np.zeros(0)
        self._left, self._rate, self._cap = nothing, nothing, nothing  # the cap: of the own link
        self._edge_s = nothing  # when the cap may change
        self._earliest_s, self._finish_s = nothing, nothing
        self._traces: Counter[StepTrace] = Counter()  # shared, with the number of their flows
        self._settled_s = 0.0
        self._alarm_s = math.inf  # the latest alarm; those set before it are stale

    def join(self, flow: Flow) -> None:
        """Add a flow, and share the capacities anew."""
        self.settle()
        self._flows.append(flow)
        self._traces.update(flow.shared)
        self._left = np.append(self._left, flow.left)
        self._rate, self._cap = np.append(self._rate, 0.0), np.append(self._cap, 0.0)
        self._edge_s = np.append(self._edge_s, -math.inf)
        self._earliest_s = np.append(self._earliest_s, flow.earliest_s)
        self._finish_s = np.append(self._finish_s, math.inf)
        self._share_out()

    def leave(self, flow: Flow) -> None:
        """Remove a flow, done or cut, and give its share to the others."""
        if flow in self._flows:
            self.settle()
            if flow in self._flows:
                self._keep(np.array([one is not flow for one in self._flows]))
            self._share_out()

    def left(self, flow: Flow) -> float:
        """Return the amount of a flow that is still to be moved."""
        self.settle()
        return float(self._left[self._flows.index(flow)]) if flow in self._flows else flow.left

    def settle(self) -> None:
        """Advance the bytes of every flow up to now, and remove the flows that are done."""
        elapsed_s, self._settled_s = self.env.now - self._settled_s, self.env.now
        self._left = np.maximum(self._left - self._rate * elapsed_s, 0.0)
        is_done = self._finish_s <= self.env.now
        if is_done.any():
            done = [self._flows[row] for row in np.flatnonzero(is_done).tolist()]
            self._left[is_done] = 0.0
            self._keep(~is_done)
            for flow in done:
                flow.whole.succeed()

    def _keep(self, is_kept: BoolArray) -> None:
        for row in np.flatnonzero(~is_kept).tolist():
            flow = self._flows[row]
            flow.left = float(self._left[row])
            self._traces.subtract(flow.shared)
        self._traces = +self._traces
        self._flows = [self._flows[row] for row in np.flatnonzero(is_kept).tolist()]
        self._left, self._rate = self._left[is_kept], self._rate[is_kept]
        self._cap, self._edge_s = self._cap[is_kept], self._edge_s[is_kept]
        self._earliest_s = self._earliest_s[is_kept]
        self._finish_s = self._finish_s[is_kept]

    def _share_out(self) -> None:
        """Set the rates from now on, and an alarm for the next instant at which one may change."""
        now_s = self.env.now
        for row in np.flatnonzero(self._edge_s <= now_s).tolist():
            own = self._flows[row].own
            self._cap[row], self._edge_s[row] = own.at(now_s), own.next_change_s(now_s)
        if list(self._traces.values()) == [len(self._flows)]:
            (trace,) = self._traces
            self._rate = rates_of_one(self._cap, trace.at(now_s))
        else:
            ways = [flow.shared for flow in self._flows]
            traces = dict.fromkeys(trace for way in ways for trace in way)
            capacities = {trace: trace.at(now_s) for trace in traces}
            self._rate = np.array(fair_rates(self._cap.tolist(), ways, capacities))
        with np.errstate(divide="ignore", invalid="ignore"):
            ends_s = np.maximum(now_s + self._left / self._rate, self._earliest_s)
        self._finish_s = np.where(self._rate > 0, ends_s, math.inf)
        edges_s = [trace.next_change_s(now_s) for trace in self._traces]
        first_s = (self._finish_s.min(initial=math.inf), self._edge_s.min(initial=math.inf))
        self._set_alarm(float(min(*first_s, *edges_s)))

    def _set_alarm(self, at_s: float) -> None:
        self._alarm_s = at_s
        if math.isfinite(at_s):
            alarm = self.env.timeout(max(at_s - self.env.now, 0.0))
            alarm.callbacks.append(lambda _: self._ring(at_s))

    def _ring(self, at_s: float) -> None:
        if at_s != self._alarm_s:
            return
        # The clock may stand a rounding short of it.
        self._finish_s[self._finish_s <= at_s] = self.env.now
        self.settle()
        self._share_out()


def rates_of_one(caps: FloatArray, capacity: float) -> FloatArray:
    """Return (n,) the max-min fair rates of flows that share one capacity and nothing else.

    The twin of ``fair_rates``, which gives the same floats: from the lowest cap on, each flow that
    its cap holds takes it from the room that is left, and the rest divide what remains.
    """
    order = np.argsort(caps, kind="stable")
    rising = caps[order]
    room = np.subtract.accumulate(np.concatenate([[capacity], rising]))[:-1]
    levels = np.maximum(room, 0.0) / np.arange(len(caps), 0, -1)
    is_held = rising <= levels
    num_capped = len(caps) if is_held.all() else int(np.argmin(is_held))
    rates = np.empty(len(caps))
    rates[order[:num_capped]] = rising[:num_capped]
    if num_capped < len(caps):
        rates[order[num_capped:]] = levels[num_capped]
    return rates


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
