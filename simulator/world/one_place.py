"""Puts all data in one place, for a run that is no federation (``Strategy.is_centralized``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from algorithms.merging.robust import AS_SENT
from algorithms.pacing import Synchronous
from algorithms.selection import Uniform
from algorithms.strategy import Strategy
from devices.fleet.catalog import profile
from devices.fleet.fleet import Device, Fleet, Shards
from devices.vocabulary.plan import DeviceId
from simulator.config.schema import LocalWork, RunConfig
from simulator.engine.conditions import Conditions
from simulator.engine.faults import no_faults
from simulator.engine.federation import Federation
from simulator.engine.modes import NO_MODES
from simulator.engine.network import NOTHING_SHARED
from simulator.log.block import Block, Piece
from simulator.log.protocol import Log, log_block
from simulator.log.records import Event
from traces.arrays import IntArray
from traces.bandwidth import BandwidthTrace, Link

NO_LIMIT_BYTES = 2**62
"""The memory of the one place, so large that it limits nothing."""
NO_LINK = Link("none", *2 * (BandwidthTrace.constant(1.0),))
"""The link of the one place, over which nothing is sent."""
OF_TIME = ("opened_s", "closed_s", "duration_s", "energy_j")
"""Columns of rounds that are 0 where no time is charged."""
MAX_STEPS = 1_000_000
"""The most steps of a round, as of a device in ``local.steps``."""


@dataclass(frozen=True)
class Pooled(Shards):
    """Pooled shards are the examples of all devices, which device 0 holds.

    They stand in the order of the training set, so that how they were divided changes nothing.
    """

    shards: Shards

    def __getitem__(self, device_id: DeviceId) -> IntArray:
        every = range(len(self.shards.sizes()))
        return np.sort(np.concatenate(list(self.shards.each(every))))

    def each(self, device_ids: Sequence[int]) -> Iterator[IntArray]:
        return map(self.__getitem__, device_ids)

    def sizes(self) -> IntArray:
        return np.array([self.shards.sizes().sum()])


def in_one_place(federation: Federation) -> Federation:
    """Return the federation of a single device that holds all data, and meets nothing else.

    A round of it has the steps of as many updates as a round of the other merges.
    """
    world, rules = federation.world, federation.rules
    steps = steps_in_one_place(rules.local, world.fleet, federation.pacing.updates_a_round)
    charged = charged_profile(federation.strategy)
    local = replace(rules.local, steps=steps, epochs=None)
    stop = rules.stop if charged else replace(rules.stop, simulated_s=None)
    device = Device(
        0, profile(charged) if charged else world.fleet.profiles[0], NO_LIMIT_BYTES, NO_LINK, _empty
    )
    fleet = replace(Fleet.of([device]), shards=Pooled(world.fleet.shards), _made={})
    return replace(
        federation,
        world=_with_fleet(world, fleet),
        rules=replace(rules, local=local, stop=stop, robustness=AS_SENT),
        pacing=Synchronous(cohort=1),
        selection=Uniform(),
    )


def charged_profile(strategy: Strategy[Any]) -> str | None:
    """Return the name of the device whose time and energy one place is charged; None: no time."""
    return getattr(strategy, "profile", None)


def steps_in_one_place(local: LocalWork, fleet: Fleet, num_updates: int) -> int:
    """Return the steps of so many updates, of devices as they are on average."""
    sizes, counts = np.unique(fleet.num_examples, return_counts=True)
    steps = [local.steps_for(int(size)) for size in sizes]
    return round(num_updates * float(np.average(steps, weights=counts)))


def steps_problem(config: RunConfig, fleet: Fleet) -> str:
    """Return why one place cannot make the steps of a round; empty where it can."""
    steps = steps_in_one_place(config.local, fleet, config.pacing.updates_a_round)
    if steps <= MAX_STEPS:
        return ""
    return (
        f"strategy: {config.strategy.kind} makes the steps of a whole round in one place, which "
        f"must be at most {MAX_STEPS}, got {steps}: lower local.steps or the pacing's cohort"
    )


class OfOnePlace:
    """This log is told of rounds, and of no device, since the devices of the fleet did nothing.

    Where no device's time is charged all happens at instant 0, and no energy is spent.
    """

    def __init__(self, log: Log, *, is_timed: bool) -> None:
        self._log, self._is_timed = log, is_timed

    def event(self, event: Event) -> None:
        if event.device is None:
            self._log.event(self._shown(event))

    def block(self, block: Block) -> None:
        pieces: list[Piece] = []
        ends = []
        for one in block.each_round():
            pieces += [self._shown(event) for event in one.events if event.device is None]
            if one.round:
                ends.append((len(pieces), 0))
        rounds = block.rounds
        if not self._is_timed:
            columns = {
                name: np.zeros_like(values) if name in OF_TIME else values
                for name, values in rounds.columns.items()
            }
            rounds = replace(rounds, columns=columns)
        log_block(self._log, Block(pieces, block.clients.rows(slice(0, 0)), rounds, ends))

    def _shown(self, event: Event) -> Event:
        """Return the event without the device that stands for the place."""
        details = {k: v for k, v in event.details.items() if k not in ("cohort", "devices")}
        return event._replace(at_s=event.at_s if self._is_timed else 0.0, details=details)


def _with_fleet(world: Conditions, fleet: Fleet) -> Conditions:
    """Return a world of this fleet in which nothing goes wrong."""
    return replace(
        world, fleet=fleet, faults=no_faults(1), shared_links=NOTHING_SHARED, modes=NO_MODES
    )


def _empty() -> IntArray:
    return np.zeros(0, dtype=np.int64)
