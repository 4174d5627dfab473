"""Carries one plan on its device, as a SimPy process: download, train, upload."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple, cast

import simpy

from devices.fleet.profile import Activity
from simulator.engine.assignment import Assignment
from simulator.engine.clock import Mailbox, Steps, sleep_until
from simulator.engine.conditions import Conditions
from simulator.engine.faults import Cut
from simulator.engine.network import Direction, Flow, Network, Segment, Unshared
from simulator.engine.presence import Condition, Presence
from simulator.engine.rules import Rules, WhenOffline
from simulator.engine.tracks import Tracks
from simulator.log.deferred import DeferredLog
from simulator.log.records import NO_DETAILS, ClientRecord, Event, Outcome
from traces.arrays import BoolArray
from traces.bandwidth import BandwidthTrace
from traces.steps import StepTrace

ELAPSED = StepTrace.constant(1.0)
MAX_SHRINKS = 3
"""The most times that a device asks for a smaller plan before it gives up the round."""
MAX_CUTS = 1_000
"""The most cuts of a phase, since one that begins anew after each might never end."""


@dataclass(frozen=True, eq=False)
class DeviceContext:
    """The context of the devices of a run is what all of them share."""

    env: simpy.Environment
    log: DeferredLog
    presence: Presence
    world: Conditions
    rules: Rules
    network: Network
    smaller: Callable[[Assignment, int], Assignment | None]  # makes a plan for so many free bytes

    @cached_property
    def told(self) -> Callable[[int, float, int], Told]:
        """Return a function from a plan's cost to the details of its events, with a cache."""
        return lru_cache(maxsize=256, typed=True)(Told.of)

    @cached_property
    def tracks(self) -> Tracks:
        """Return the traces of all devices, as timelines of plans look them up."""
        return Tracks(self.world.fleet)

    @cached_property
    def may_be_cut(self) -> BoolArray:
        """Return (n,): whose plans depend on more than calendars, memory and crashes.

        These devices have a battery, may lose their link, or share it.
        """
        world = self.world
        found: BoolArray = world.faults.may_lose_links | ~world.fleet.on_mains
        return found | world.shared_links.are_shared_by(len(found))


class Told(NamedTuple):
    """Told holds the details of the events that begin the phases of a plan."""

    download: Mapping[str, Any]
    training: Mapping[str, Any]
    upload: Mapping[str, Any]

    @classmethod
    def of(cls, download_bytes: int, flops: float, upload_bytes: int) -> Told:
        """Return the details for a plan of this cost."""
        return cls(told_bytes(download_bytes), {"flops": flops}, told_bytes(upload_bytes))


@lru_cache(maxsize=256, typed=True)
def told_bytes(number: int) -> Mapping[str, Any]:
    """Return the details of an event that is about so many bytes; equal ones are kept once."""
    return {"bytes": number}


class _WorkLostError(Exception):
    """This error ends the plan of a device without an update, with the given outcome."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome


def run_client(context: DeviceContext, work: Assignment, inbox: Mailbox) -> Steps:
    """Carry out one plan on its device, and report to the server how it ended.

    An interrupt means that the server has stopped waiting: the phase under way is cut, and counted
    up to that instant.
    """
    client = _Client(context, work)
    record = client.record
    try:
        yield from client.live()
        record.outcome = "aggregated"
    except simpy.Interrupt:
        record.outcome = "late"
        client.event("late")
    except _WorkLostError as lost:
        record.outcome = lost.outcome
    end_plan(context, client.work, client.delivered_bytes)
    inbox.put(client.work)


def end_plan(context: DeviceContext, work: Assignment, delivered_bytes: int) -> None:
    """Complete the record of a plan that ends now, and let its device rest."""
    record = work.record
    record.lost_bytes += record.download_bytes + record.upload_bytes - delivered_bytes
    record.finished_s = context.env.now
    context.presence.rest(record.device_id, context.env.now)


class _Client:
    """A client runs the phases of a plan in turn, and keeps its record true when one is cut."""

    def __init__(self, context: DeviceContext, work: Assignment) -> None:
        self.context, self.work = context, work
        self.env, self.record = context.env, cast(ClientRecord, work.record)
        self.delivered_bytes = 0
        self.device = work.device  # stays the same when a smaller plan replaces the work
        faults, device_id = context.world.faults, self.device.device_id
        links = (faults.link_losses(device_id), faults.server)
        self._links: Sequence[Condition] = [link for link in links if not link.is_none]

    def event(self, name: str, details: Mapping[str, Any] = NO_DETAILS) -> None:
        record = self.record
        self.context.log.event(Event(self.env.now, name, record.round, record.device_id, details))

    def live(self) -> Steps:
        link = self.device.link
        yield from self._transfer("download", link.downlink, self.work.cost.download_bytes)
        while not (yield from self._train()):
            self._shrink()
            yield from self._transfer("download", link.downlink, self.work.cost.download_bytes)
        yield from self._transfer("upload", link.uplink, self.work.cost.upload_bytes)

    def _transfer(self, direction: Direction, trace: BandwidthTrace, size_bytes: int) -> Steps:
        self.event(f"{direction}_started", {"bytes": size_bytes})
        if size_bytes == 0:  # without a message there is no latency, and no link is needed
            return
        latency_s = self.device.latency.at(self.env.now)
        if latency_s:
            yield from _Progress(self, f"{direction}_s", "radio").make(
                partial(Unshared, self.env, ELAPSED), latency_s
            )
        progress = _Progress(self, f"{direction}_s", "radio", links=self._links)
        field, before = f"{direction}_bytes", getattr(self.record, f"{direction}_bytes")
        try:
            yield from progress.make(self._way(direction, trace.steps), size_bytes)
            self.delivered_bytes += size_bytes
        finally:
            # The parts of a transfer that was cut may miss its size by an ulp, hence the rounding.
            setattr(self.record, field, before + round(progress.done))

    def _way(self, direction: Direction, own: StepTrace) -> Callable[[float], Segment]:
        shared = self.context.world.shared_links.of(self.record.device_id)
        if not shared:
            return partial(Unshared, self.env, own)
        ways = (k.downlink if direction == "download" else k.uplink for k in shared)
        return partial(Flow, self.context.network, own, [way.steps for way in ways])

    def _train(self) -> Generator[simpy.Event, Any, bool]:
        """Wait while the device trains, and return True if its memory sufficed to the end."""
        cost, device, record = self.work.cost, self.device, self.record
        self._note_memory()
        share = cost.memory.total / device.memory_budget_bytes
        if device.free_memory.at(self.env.now) < share:
            return self._out_of_memory()
        self.event("training_started", {"flops": cost.flops})
        progress = _Progress(self, "train_s", "compute", memory_share=share)
        before = record.flops
        try:
            yield from progress.make(partial(Unshared, self.env, device.speed), cost.train_s)
        finally:
            share_done = progress.done / cost.train_s if cost.train_s else 1.0
            record.flops = before + cost.flops * share_done
        if progress.is_out_of_memory:
            self._note_memory()
            return self._out_of_memory()
        return True

    def _note_memory(self) -> None:
        device, record, now_s = self.device, self.record, self.env.now
        record.free_memory_bytes = int(device.free_memory.at(now_s) * device.memory_budget_bytes)
        record.battery_share = self.context.presence.battery_share(record.device_id, now_s)

    def _out_of_memory(self) -> bool:
        free, needed = self.record.free_memory_bytes, self.work.cost.memory.total
        self.event("oom", {"needed_bytes": needed, "budget_bytes": free})
        return False

    def _shrink(self) -> None:
        """Replace the plan by a smaller one. Raises _WorkLostError where there is none."""
        context, record = self.context, self.record
        when = context.rules.when_out_of_memory
        if when == "drop":
            context.presence.drop(record.device_id)
            self.event("dropped")
        if when != "shrink" or record.num_shrinks == MAX_SHRINKS:
            raise _WorkLostError("oom")
        smaller = context.smaller(self.work, record.free_memory_bytes)
        if smaller is None:
            raise _WorkLostError("oom")
        self.work = smaller
        record.num_shrinks += 1
        self.event("shrunk", {"needed_bytes": smaller.cost.memory.total})

    def wait_until_back(self, phase: _Progress) -> Steps:
        """Wait for the device to come back, if it keeps its work that long.

        ``phase`` is what it was doing, which a link that is lost meanwhile may cut as well.
        """
        device_id, away_s = self.record.device_id, self.env.now
        presence, when_offline = self.context.presence, self.context.rules.when_offline
        is_crash = presence.cause(device_id, away_s) == "crashed"
        self.event("crashed" if is_crash else "went_offline")
        self._end_if_lost()
        if when_offline == "abort":
            raise _WorkLostError("offline")
        presence.rest(device_id, away_s)
        phase.cut(when_offline)
        try:
            while not presence.is_there(device_id, self.env.now):
                phase.cut_where_no_link()
                back_s = presence.until_s(device_id, self.env.now)
                loss_s = presence.next_loss_s(device_id, self.env.now)
                until_s = min(back_s, loss_s)
                if math.isinf(until_s):
                    raise _WorkLostError("offline")
                yield from sleep_until(self.env, min(until_s, phase.next_link_loss_s()))
                self._end_if_lost()
        finally:
            self.record.offline_s += self.env.now - away_s
        self.event("came_back")

    def _end_if_lost(self) -> None:
        """Raise _WorkLostError if the device has crashed, run out of power or left for good."""
        cause = self.context.presence.cause(self.record.device_id, self.env.now)
        if cause not in (None, "offline"):
            raise _WorkLostError("crashed" if cause == "crashed" else "offline")


class _Progress:
    """A progress is that of one phase, whose amount of bytes or work is done in uncut segments."""

    def __init__(
        self,
        client: _Client,
        field: str,
        activity: Activity,
        *,
        links: Sequence[Condition] = (),
        memory_share: float = 0.0,
    ) -> None:
        self._client, self._field, self._activity = client, field, activity
        self._links, self._memory_share = links, memory_share
        self.done = 0.0  # the amount done, including what was lost and done again
        self._amount = self._left = 0.0
        self._has_begun = False
        self.is_out_of_memory = False

    def make(self, begin: Callable[[float], Segment], amount: float) -> Steps:
        """Wait until the whole amount is done, or memory runs out."""
        client, env = self._client, self._client.env
        self._amount = self._left = amount
        for _ in range(MAX_CUTS):
            yield from self._until_up()
            started_s = env.now
            segment = begin(self._left)
            self._has_begun = True
            cut_s = self._cut_s(started_s, segment.needed_s)
            try:
                if math.isinf(segment.needed_s) and math.isinf(cut_s):
                    client.event("lost")
                    raise _WorkLostError("lost")  # the phase would never end, nor be cut
                if (yield from segment.until(cut_s)):
                    self.done += self._left
                    return
                self._after_cut(segment.moved())
            except simpy.Interrupt:
                self.done += min(segment.moved(), self._left)
                raise
            finally:
                segment.end()
                self._spend(env.now - started_s)
            if self.is_out_of_memory:
                return
        client.event("lost")
        raise _WorkLostError("lost")

    def _spend(self, elapsed_s: float) -> None:
        record = self._client.record
        setattr(record, self._field, getattr(record, self._field) + elapsed_s)

    def _cut_s(self, now_s: float, needed_s: float) -> float:
        """Return the next instant at which something ends this phase early."""
        client = self._client
        cut_s = client.context.presence.until_s(client.record.device_id, now_s)
        for link in self._links:
            cut_s = min(cut_s, link.span(now_s)[1])
        if self._memory_share:
            free = client.device.free_memory
            cut_s = min(cut_s, free.first_below(self._memory_share, now_s, now_s + needed_s))
        return cut_s

    def _after_cut(self, moved: float) -> None:
        """Take note of what was done, and cut the phase where a link was lost.

        Where the device has left, ``wait_until_back`` follows at this very instant.
        """
        client, now_s = self._client, self._client.env.now
        self.done += min(moved, self._left)
        free_memory = client.device.free_memory
        if self._memory_share and free_memory.at(now_s) < self._memory_share:
            self.is_out_of_memory = True
            return
        self._left = max(self._left - moved, 0.0)
        if client.context.presence.is_there(client.record.device_id, now_s):
            client.event("link_lost")
            self.cut(client.context.world.faults.cut_transfers)

    def cut(self, policy: Cut | WhenOffline) -> None:
        """Apply a policy to what the phase has done so far; nothing where it has not begun."""
        if not self._has_begun:
            return
        if policy == "drop":
            self._client.event("lost")
            raise _WorkLostError("lost")
        if policy == "restart":
            self._left = self._amount

    def cut_where_no_link(self) -> None:
        """Apply the policy for lost links where one is lost now; to apply it again is harmless."""
        if not all(link.span(self._client.env.now)[0] for link in self._links):
            self.cut(self._client.context.world.faults.cut_transfers)

    def next_link_loss_s(self) -> float:
        """Return the next instant at which a link is lost; ``inf`` where that changes nothing."""
        if not self._has_begun or self._client.context.world.faults.cut_transfers == "resume":
            return math.inf
        spans = (link.span(self._client.env.now) for link in self._links)
        return min((until_s for is_up, until_s in spans if is_up), default=math.inf)

    def _until_up(self) -> Steps:
        """Wait until the device is present and all its links are up."""
        client = self._client
        presence, env, device_id = client.context.presence, client.env, client.record.device_id
        power_w = client.device.profile.power_w[self._activity]
        while True:
            if not presence.is_there(device_id, env.now):
                yield from client.wait_until_back(self)
                continue
            presence.draw(device_id, power_w, env.now)
            if not self._links:
                return
            ends_s = [end_s for up, end_s in (k.span(env.now) for k in self._links) if not up]
            if not ends_s:
                return
            self.cut_where_no_link()
            # The device stays active during a link outage, so this time counts toward the phase.
            started_s = env.now
            try:
                yield from sleep_until(env, min(max(ends_s), presence.until_s(device_id, env.now)))
            finally:
                self._spend(env.now - started_s)
