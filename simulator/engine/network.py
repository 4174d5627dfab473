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
import numpy.typing as npt
import simpy
from simpy.events import EventPriority

from devices.vocabulary.plan import DeviceId
from simulator.engine.clock import at_this_instant, sleep_until
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
    # (n,): the cell of each device, or -1 for none.
    cell_index: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def is_nothing(self) -> bool:
        """Return True where no transfer shares a link."""
        return self.server is None and not self.cells

    def are_shared_by(self, num_devices: int) -> BoolArray:
        """Return (n,): whose transfers share a link with others."""
        if self.server is None and self.cells:
            found: BoolArray = self.cell_index >= 0
            return found
        return np.full(num_devices, self.server is not None)

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
        self.own, self.way = own, tuple(shared)
        self.left = float(amount)  # the amount left when the flow joined or ended
        self.whole = network.env.event()
        now_s = network.env.now
        needed_s = max(trace.time_to(amount, now_s) for trace in (self.own, *self.way))
        self.needed_s = shown_s(needed_s, now_s)
        self.earliest_s = math.nextafter(now_s, math.inf) if amount > 0 else now_s
        self.number = -1  # counts flows as they enter the table; -1 while this one is not in it
        network.join(self)

    def until(self, cut_s: float) -> Steps:
        env = self._network.env
        if math.isinf(cut_s):
            yield self.whole
        while not self.whole.triggered and env.now < cut_s:
            yield self.whole | env.timeout(cut_s - env.now)
            self._network.settle()  # the flow may end at the instant of the cut
        return bool(self.whole.triggered)

    def moved(self) -> float:
        return self._amount - self._network.left(self)

    def end(self) -> None:
        self._network.leave(self)


LAST = EventPriority(2)
"""The priority of what comes after all else at one instant; SimPy's own are 0 and 1."""
NUMBER, LEFT, RATE, CAP, EDGE_S, EARLIEST_S, FINISH_S, WAY = range(8)
"""The rows of the network's table: of each flow its number, the amount left, its rate, the cap of
its own link and when that may change, the first instant at which it may end, when it ends at its
rate, and the index of its way."""


class Network:
    """The network holds all flows, and moves them from one change of rates to the next.

    Its table has a column for each of the n flows, in order of arrival. Whoever joins or leaves at
    one instant changes the rates once, at the end of it; what that costs grows with n only inside
    numpy. An own link that changes where another capacity holds its flow changes no rate.
    """

    def __init__(self, env: simpy.Environment) -> None:
        self.env = env
        self._flows: npt.NDArray[np.object_] = np.zeros(0, dtype=object)
        self._table = np.zeros((WAY + 1, 0))
        self._joining: dict[Flow, None] = {}
        self._num_joined = 0
        self._ways: dict[tuple[StepTrace, ...], int] = {}
        self._shared_edge_s = math.inf  # the next instant at which a shared capacity may change
        self._settled_s = 0.0
        self._is_due = False  # True if rates are to be computed at the end of this instant
        self._alarm_s = math.inf  # the latest alarm; those set before it are stale

    def join(self, flow: Flow) -> None:
        """Add a flow, and share the capacities anew."""
        self._joining[flow] = None
        self._change()

    def leave(self, flow: Flow) -> None:
        """Remove a flow, done or cut, and give its share to the others."""
        self._joining.pop(flow, None)
        if flow.number >= 0:
            self.settle()
        if flow.number >= 0:
            self._remove(self._table[NUMBER] == flow.number)
            self._change()

    def left(self, flow: Flow) -> float:
        """Return the amount of a flow that is still to be moved."""
        self.settle()
        if flow.number < 0:
            return flow.left
        return float(self._table[LEFT, np.searchsorted(self._table[NUMBER], flow.number)])

    def settle(self) -> None:
        """Advance the bytes of every flow up to now, and remove the flows that are done."""
        elapsed_s, self._settled_s = self.env.now - self._settled_s, self.env.now
        if elapsed_s:
            left = self._table[LEFT]
            np.maximum(left - self._table[RATE] * elapsed_s, 0.0, out=left)
        is_done = self._table[FINISH_S] <= self.env.now
        if is_done.any():
            self._table[LEFT, is_done] = 0.0
            for flow in self._remove(is_done):
                flow.whole.succeed()
            self._change()

    def _remove(self, is_gone: BoolArray) -> list[Flow]:
        """Take flows out of the table, and return them."""
        gone: list[Flow] = self._flows[is_gone].tolist()
        for flow, left in zip(gone, self._table[LEFT, is_gone].tolist(), strict=True):
            flow.left, flow.number = left, -1
        self._flows, self._table = self._flows[~is_gone], self._table[:, ~is_gone]
        return gone

    def _change(self) -> None:
        """Compute the rates anew after all other events of this instant."""
        if not self._is_due:
            self._is_due = True
            at_this_instant(self.env, self._share_out, LAST)

    def _let_in(self) -> None:
        """Add a column to the table for each flow that has joined at this instant."""
        flows, self._joining = list(self._joining), {}
        columns = np.zeros((WAY + 1, len(flows)))
        columns[NUMBER] = np.arange(self._num_joined, self._num_joined + len(flows))
        columns[LEFT] = [flow.left for flow in flows]
        columns[EDGE_S], columns[FINISH_S] = -math.inf, math.inf
        columns[EARLIEST_S] = [flow.earliest_s for flow in flows]
        columns[WAY] = [self._ways.setdefault(flow.way, len(self._ways)) for flow in flows]
        for number, flow in enumerate(flows, start=self._num_joined):
            flow.number = number
        self._num_joined += len(flows)
        self._table = np.concatenate([self._table, columns], axis=1)
        self._flows = np.concatenate([self._flows, np.array(flows, dtype=object)])

    def _share_out(self, _: simpy.Event) -> None:
        """Set the rates from now on, and an alarm for the next instant at which one may change."""
        self.settle()
        self._let_in()
        now_s, table = self.env.now, self._table
        self._follow_caps()
        table[RATE] = self._rates()
        with np.errstate(divide="ignore", invalid="ignore"):
            ends_s = np.maximum(now_s + table[LEFT] / table[RATE], table[EARLIEST_S])
        table[FINISH_S] = np.where(table[RATE] > 0, ends_s, math.inf)
        self._is_due = False
        self._set_alarm()

    def _follow_caps(self) -> bool:
        """Update the caps of own links that have changed; return whether that changes a rate."""
        now_s, table, matters = self.env.now, self._table, False
        for place in np.flatnonzero(table[EDGE_S] <= now_s).tolist():
            own = self._flows[place].own
            cap, rate = own.at(now_s), table[RATE, place]
            # A flow that another capacity keeps below its cap does not change its rate.
            matters |= not (rate < table[CAP, place] and rate < cap)
            table[CAP, place], table[EDGE_S, place] = cap, own.next_change_s(now_s)
        return matters

    def _rates(self) -> FloatArray:
        """Return (n,) the max-min fair rates of this instant."""
        now_s, table = self.env.now, self._table
        ways = list(self._ways)
        present = [ways[k] for k in np.unique(table[WAY].astype(np.int64)).tolist()]
        users = Counter(trace for way in present for trace in way)
        self._shared_edge_s = min((trace.next_change_s(now_s) for trace in users), default=math.inf)
        rates: FloatArray = table[CAP].copy()
        together = np.zeros(len(rates), dtype=np.bool_)
        for way in present:
            mine = table[WAY] == self._ways[way]
            # If a capacity is used by the flows of one way alone, their rates are independent.
            if len(way) == 1 and users[way[0]] == 1:
                rates[mine] = rates_of_one(table[CAP, mine], way[0].at(now_s))
            else:
                together |= mine
        if together.any():
            flows = [flow.way for flow in self._flows[together].tolist()]
            capacities = {trace: trace.at(now_s) for way in flows for trace in way}
            rates[together] = fair_rates(table[CAP, together].tolist(), flows, capacities)
        return rates

    def _set_alarm(self) -> None:
        """Set an alarm for the next instant at which a rate may change or a flow may end."""
        first_s = (
            self._table[FINISH_S].min(initial=math.inf),
            self._table[EDGE_S].min(initial=math.inf),
        )
        at_s = self._alarm_s = float(min(*first_s, self._shared_edge_s))
        if math.isfinite(at_s):
            alarm = self.env.timeout(max(at_s - self.env.now, 0.0))
            alarm.callbacks.append(lambda _: self._ring(at_s))

    def _ring(self, at_s: float) -> None:
        if at_s != self._alarm_s or self._is_due:
            return
        # By rounding, the clock may be slightly before the instant of the alarm.
        finish_s = self._table[FINISH_S]
        finish_s[finish_s <= at_s] = self.env.now
        if (finish_s <= self.env.now).any() or self._shared_edge_s <= at_s or self._follow_caps():
            self._change()
            self.settle()
        else:
            self._set_alarm()


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
