"""Draws for all devices at once: numbers of their own, and traces from the pools of their groups.

Every draw is the n-th of a stream with a name of its own, n being the device: one more device, or
one more quantity, moves no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar, cast

import numpy as np

from devices.fleet.fleet import Assigned
from simulator.config.fleet import Replay
from simulator.config.problems import Problems
from simulator.config.schema import section_json
from simulator.engine.seeds import stream
from simulator.world.groups import Group
from traces.arrays import FloatArray, IntArray

T = TypeVar("T")


@dataclass(frozen=True)
class Replayed(Generic[T]):
    """A replayed quantity is one that devices replay traces of, such as a link or a battery."""

    name: str
    load: Callable[[int, Replay], Sequence[T]]  # returns the pool of a group
    period_s: Callable[[T], float]
    missing: T | None = None  # the value for groups that replay nothing


class Draw:
    """A draw gives all devices numbers and traces at once, group by group."""

    def __init__(self, seed: int, groups: Sequence[Group], problems: Problems) -> None:
        self.seed, self.groups, self.problems = seed, groups, problems
        counts = [group.count for group in groups]
        self.members = np.repeat(np.arange(len(groups)), counts)  # (n,): the group of each device
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).tolist()

    def devices(self, group: int) -> IntArray:
        """Return the devices of a group."""
        return np.arange(self._starts[group], self._starts[group + 1])

    def uniform(self, *names: str) -> FloatArray:
        """Return (n,) numbers in [0, 1), the k-th always the same whatever n is."""
        return stream(self.seed, *names).random(len(self.members))

    def between(self, name: str, ranges: Sequence[Sequence[float]]) -> FloatArray:
        """Return (n,): for each device its own number between the two bounds of its group."""
        low = np.array([bounds[0] for bounds in ranges])[self.members]
        high = np.array([bounds[-1] for bounds in ranges])[self.members]
        between: FloatArray = low + (high - low) * self.uniform(name)
        return between

    def assign(self, quantity: Replayed[T], replays: Sequence[Replay | None]) -> Assigned[T]:
        """Return the trace of each device, and where in it the device starts."""
        pools = _Pools[T]()
        index = np.zeros(len(self.members), dtype=np.int64)
        offset_s = np.zeros(len(self.members))
        drawn = self.uniform(quantity.name, "trace")
        started = self.uniform(quantity.name, "start")
        for k, replay in enumerate(replays):
            mine = self.devices(k)
            if replay is None:
                assert quantity.missing is not None
                pool = pools.of("", [quantity.missing].copy)
            else:
                where, key = (
                    f"{self.groups[k].where}.{quantity.name}",
                    self._key(k, quantity.name, replay),
                )
                loaded = partial(quantity.load, k, replay)
                found = self.problems.attempt(where, partial(pools.of, key, loaded))
                if found is None:
                    continue
                pool = found
            picked = (drawn[mine] * pool.size).astype(np.int64)
            if replay and replay.sample == "without_replacement":
                picked = self._each_once(quantity.name, k, replay, pool)
            index[mine] = pool.start + picked
            if replay and replay.start == "random":
                periods_s = pool.periods_s(quantity.period_s)[picked]
                offset_s[mine] = started[mine] * np.where(np.isfinite(periods_s), periods_s, 0.0)
            if replay and replay.at_end == "stop":
                pool.end()
        return Assigned(pools.traces(), index, offset_s)

    def _key(self, k: int, name: str, replay: Replay) -> str:
        """Return the key of a group's pool; groups of one key draw from one pool."""
        config = self.groups[k].config
        origin = (section_json(replay, exclude=("start", "sample")), config.uplink_scale)
        is_own = replay.source is None or name == "battery"
        return repr((origin, self.groups[k].where if is_own else ""))

    def _each_once(self, name: str, k: int, replay: Replay, pool: _Pool[Any]) -> IntArray:
        count = self.groups[k].count
        order = stream(self.seed, name, "order", pool.key).permutation(pool.size)
        picked: IntArray = order[pool.num_taken : pool.num_taken + count]
        pool.num_taken += count
        if len(picked) == count:
            return picked
        self.problems.add(
            f"{self.groups[k].where}.{name}: a pool drawn from without replacement must hold a "
            f"trace for each of the {pool.num_taken} devices that draw from it, got {pool.size} in "
            f"{replay.source or 'variants'}; take more traces, fewer devices or "
            f"sample: with_replacement"
        )
        return np.zeros(count, dtype=np.int64)


@dataclass
class _Pool(Generic[T]):
    """A pool holds the traces that groups of one key draw from.

    They stand at ``start`` and after it in the list of all pools' traces. ``played`` are the traces
    as devices meet them, which end instead of repeating if a group asks for that.
    """

    key: str
    start: int
    loaded: Sequence[T]
    played: Sequence[T]
    num_taken: int = 0

    @property
    def size(self) -> int:
        return len(self.loaded)

    def periods_s(self, period_s: Callable[[T], float]) -> FloatArray:
        """Return (size,): the length of each trace, whether it repeats or not."""
        return np.array([period_s(trace) for trace in self.loaded])

    def end(self) -> None:
        """Change the traces so that they end instead of repeating."""
        self.played = [cast(Any, trace).ended() for trace in self.loaded]


@dataclass
class _Pools(Generic[T]):
    """The pools of all groups hold the traces one pool after the other, each loaded once."""

    _by_key: dict[str, _Pool[T]] = field(default_factory=dict)
    _total: int = 0

    def of(self, key: str, load: Callable[[], Sequence[T]]) -> _Pool[T]:
        """Return the pool of this key."""
        if key not in self._by_key:
            traces = load()
            self._by_key[key] = _Pool(key, self._total, traces, traces)
            self._total += len(traces)
        return self._by_key[key]

    def traces(self) -> list[T]:
        """Return all traces, as they are played."""
        return [trace for pool in self._by_key.values() for trace in pool.played]
