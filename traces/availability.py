"""Follows when a device is online, and reads and writes that as CSV.

A file has the header ``device_id,start_s,end_s,state``. Each row is a half-open interval in which
the state of one device is ``online`` or ``offline``; a device is offline wherever no row covers it.
The rows of one device rise in time and do not overlap. Its trace begins at 0, ends with its last
row and then repeats.
"""

from __future__ import annotations

import csv
import io
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from traces.arrays import BoolArray, FloatArray
from traces.text import Row, Table, excerpt, read_table
from traces.units import MAX_TIME_S

COLUMNS = ("device_id", "start_s", "end_s", "state")
STATES = ("online", "offline")


@dataclass(frozen=True, eq=False)
class AvailabilityTrace:
    """An availability trace says when one device is online, and repeats every ``period_s``.

    The device is online on each ``[start_s[i], end_s[i])`` and offline elsewhere. ``start_s`` and
    ``end_s`` are (n,), in [0, period_s]; intervals are not empty, rise, and neither touch nor
    overlap. With a ``period_s`` of ``inf`` the trace does not repeat. Instant 0 of the simulated
    clock lies ``offset_s`` into the trace. Raises ValueError where one of these fails.
    """

    start_s: FloatArray
    end_s: FloatArray
    period_s: float
    offset_s: float = 0.0

    def __post_init__(self) -> None:
        if self.start_s.shape != self.end_s.shape or self.start_s.ndim != 1:
            raise ValueError(
                f"availability needs as many starts as ends, got {self.start_s.shape} starts "
                f"and {self.end_s.shape} ends"
            )
        if not self.period_s > 0:
            raise ValueError(f"the period must be a number above 0, got {self.period_s:g}")
        edges = self._edges_s
        # The last end may be infinite: a device that is online for ever.
        known = not np.isnan(edges).any() and np.isfinite(edges[:-1]).all()
        if not (known and (edges >= 0).all() and (edges <= self.period_s).all()):
            raise ValueError(
                f"intervals must lie in [0, {self.period_s:g}] s, "
                f"got edges from {edges.min():.12g} to {edges.max():.12g}"
            )
        if (np.diff(edges) <= 0).any():
            at = int(np.argmax(np.diff(edges) <= 0))
            raise ValueError(
                f"intervals must neither be empty, touch nor overlap, "
                f"got {edges[at + 1]:.12g} after {edges[at]:.12g}"
            )

    @classmethod
    def of(cls, intervals: Iterable[tuple[float, float]], period_s: float) -> AvailabilityTrace:
        """Return the trace of (start, end) pairs in order; touching ones are joined."""
        joined: list[tuple[float, float]] = []
        for start_s, end_s in intervals:
            if joined and joined[-1][1] == start_s:
                joined[-1] = (joined[-1][0], end_s)
            elif start_s != end_s:
                joined.append((start_s, end_s))
        pairs = np.array(joined, dtype=np.float64).reshape(-1, 2)
        return cls(pairs[:, 0].copy(), pairs[:, 1].copy(), float(period_s))

    @cached_property
    def _edges_s(self) -> FloatArray:
        """Return (2 n,): the start and end of each of the n intervals in turn, in seconds."""
        return np.stack([self.start_s, self.end_s], axis=1).ravel()

    @cached_property
    def _online_s(self) -> FloatArray:
        """Return (2 n,): the seconds online from 0 to each edge of ``_edges_s``."""
        spans = np.stack([np.zeros_like(self.start_s), self.end_s - self.start_s], axis=1)
        return np.cumsum(spans.ravel())

    @cached_property
    def _changes_s(self) -> FloatArray:
        """Return (k,): the instants in [0, period) at which the state changes, in seconds.

        A loop that ends in one state and begins in the other changes at 0.
        """
        edges = self._edges_s
        if math.isinf(self.period_s):
            return edges[np.isfinite(edges)]
        if len(edges) == 0 or edges[-1] < self.period_s:
            return edges
        if edges[0] == 0:  # the device stays online from one loop to the next
            return edges[1:-1]
        return np.concatenate([[0.0], edges[:-1]])

    @cached_property
    def _change_list_s(self) -> list[float]:
        changes: list[float] = self._changes_s.tolist()
        return changes

    @cached_property
    def _is_online_first(self) -> bool:
        """Return True if the device is online before the first change of a loop."""
        if math.isinf(self.period_s):  # no loop came before, so the first change goes online
            return False
        return len(self.end_s) > 0 and bool(self.end_s[-1] == self.period_s)

    @property
    def fraction_online(self) -> float:
        """Return the share of time that the device is online, for a trace that repeats."""
        return self.online_s(self.period_s) / self.period_s

    def online_s(self, until_s: float) -> float:
        """Return the seconds online from 0 to ``until_s``, for a trace that repeats."""
        loops, within_s = divmod(until_s, self.period_s)
        whole_s, rest_s = self.online_within_s(np.array([self.period_s, within_s])).tolist()
        return float(loops * whole_s + rest_s)

    def online_within_s(self, at_s: FloatArray) -> FloatArray:
        """Return (n,): seconds online from 0 to each instant of ``at_s`` (n,) in [0, period]."""
        if len(self._edges_s) == 0:
            return np.zeros(len(at_s))
        within_s: FloatArray = np.interp(at_s, self._edges_s, self._online_s, left=0.0)
        return within_s

    def is_online(self, at_s: float) -> bool:
        """Return whether the device is online at an instant of the simulated clock."""
        _, passed = self._position(at_s)
        return self._is_online_first != bool(passed % 2)

    def next_change_s(self, at_s: float) -> float:
        """Return the first instant after ``at_s`` at which the state differs, else ``inf``."""
        changes = self._change_list_s
        if len(changes) == 0:
            return math.inf
        loops, passed = self._position(at_s)
        if passed == len(changes):
            if math.isinf(self.period_s):
                return math.inf
            loops, passed = loops + 1, 0
        return self._base_s(loops) + changes[passed]

    def spans_from(self, at_s: float) -> Iterator[tuple[bool, float]]:
        """Return whether the device is online and until when, one span after the other.

        The first span is the one that holds at ``at_s``; the last one, where there is one, ends at
        ``inf``. Values are those of ``is_online`` and ``next_change_s``, without their searches.
        """
        changes, (loops, passed) = self._change_list_s, self._position(at_s)
        online = self._is_online_first != bool(passed % 2)
        while True:
            if passed == len(changes):
                if not changes or math.isinf(self.period_s):
                    yield online, math.inf
                    return
                loops, passed = loops + 1, 0
            yield online, self._base_s(loops) + changes[passed]
            online, passed = not online, passed + 1

    def spans_at(self, at_s: float, offsets_s: FloatArray) -> tuple[BoolArray, FloatArray]:
        """Return ``is_online`` and ``next_change_s`` at one instant for many clocks, bit for bit.

        Each clock is that of ``begun_at`` with its offset; all arrays are (n,).
        """
        changes, count = self._changes_s, len(self._changes_s)
        if count == 0:
            online = np.full(len(offsets_s), self._is_online_first)
            return online, np.full(len(offsets_s), np.inf)
        begun_s = self.offset_s + offsets_s
        loops = np.zeros(len(offsets_s))
        if math.isfinite(self.period_s):
            begun_s = np.where(offsets_s != 0, np.mod(begun_s, self.period_s), begun_s)
            loops = np.floor((at_s + begun_s) / self.period_s)
            while (early := loops * self.period_s - begun_s > at_s).any():
                loops -= early
            while (ended := (loops + 1) * self.period_s - begun_s <= at_s).any():
                loops += ended
        base_s = (loops * self.period_s if math.isfinite(self.period_s) else loops) - begun_s
        passed = np.searchsorted(changes, at_s - base_s, side="right")
        while (early := (passed > 0) & (base_s + changes[passed - 1] > at_s)).any():
            passed -= early
        last = count - 1
        while (
            ended := (passed < count) & (base_s + changes[np.minimum(passed, last)] <= at_s)
        ).any():
            passed += ended
        is_past = passed == count
        next_s = base_s + changes[np.minimum(passed, last)]
        after_s = math.inf
        if math.isfinite(self.period_s):
            after_s = (loops + 1) * self.period_s - begun_s + changes[0]
        online = self._is_online_first != (passed % 2 == 1)
        return online, np.where(is_past, after_s, next_s)

    def begun_at(self, offset_s: float) -> AvailabilityTrace:
        """Return the trace for a clock that starts ``offset_s`` further into it.

        The arrays are shared with this trace, and so stay as they are; ``shifted`` rewrites them.
        """
        # These are cached before the copy, so that all copies share one computation.
        _ = self._change_list_s, self._is_online_first
        total_s = self.offset_s + offset_s
        if math.isfinite(self.period_s):
            total_s %= self.period_s
        # The checks of the constructor do not depend on the offset, so they are not repeated.
        begun = object.__new__(AvailabilityTrace)
        begun.__dict__.update(self.__dict__, offset_s=total_s)
        return begun

    def ended(self) -> AvailabilityTrace:
        """Return the trace without repetition: after its period the device is offline for ever."""
        return replace(self, period_s=math.inf)

    def shifted(self, offset_s: float) -> AvailabilityTrace:
        """Return the loop with rewritten intervals: its instant 0 is ``offset_s`` of this one."""
        offset_s %= self.period_s
        if offset_s == 0:
            return self
        ahead_s = self.period_s - offset_s
        later = self.end_s > offset_s
        earlier = self.start_s < offset_s
        intervals = [
            *zip(self.start_s[later] - offset_s, self.end_s[later] - offset_s, strict=True),
            *zip(self.start_s[earlier] + ahead_s, self.end_s[earlier] + ahead_s, strict=True),
        ]
        clipped = [(max(float(a), 0.0), min(float(b), self.period_s)) for a, b in intervals]
        return AvailabilityTrace.of(clipped, self.period_s)

    def _base_s(self, loops: int) -> float:
        """Return the instant of the clock at which a loop begins."""
        return (loops * self.period_s if loops else 0.0) - self.offset_s

    def _position(self, at_s: float) -> tuple[int, int]:
        """Return how many loops have ended, and how many changes of the current one have passed.

        Both are decided by the rounded instants that ``next_change_s`` returns, so that the state
        has changed at such an instant however large the clock is.
        """
        changes, loops = self._change_list_s, 0
        if math.isfinite(self.period_s):
            loops = math.floor((at_s + self.offset_s) / self.period_s)
            while self._base_s(loops) > at_s:
                loops -= 1
            while self._base_s(loops + 1) <= at_s:
                loops += 1
        base_s = self._base_s(loops)
        passed = bisect_right(changes, at_s - base_s)
        while passed and base_s + changes[passed - 1] > at_s:
            passed -= 1
        while passed < len(changes) and base_s + changes[passed] <= at_s:
            passed += 1
        return loops, passed


def availability_text(devices: Mapping[str, AvailabilityTrace]) -> str:
    """Return the CSV of these devices, which ``read_availability`` reads back without loss."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for device_id, trace in devices.items():
        end_s = 0.0
        for start_s, end_s in zip(trace.start_s.tolist(), trace.end_s.tolist(), strict=True):
            writer.writerow((device_id, _seconds(start_s), _seconds(end_s), "online"))
        if end_s < trace.period_s:
            writer.writerow((device_id, _seconds(end_s), _seconds(trace.period_s), "offline"))
    return buffer.getvalue()


def read_availability(path: str | Path) -> dict[str, AvailabilityTrace]:
    """Return the trace of each device in a CSV file.

    Raises ValueError that names the file, the line, what was found and what is expected.
    """
    return availability_of(read_table(Path(path)))


def availability_of(table: Table) -> dict[str, AvailabilityTrace]:
    """Return the trace of each device in a table with the columns of the format.

    Raises ValueError that names the file, the line, what was found and what is expected.
    """
    table.require(COLUMNS)
    if not table.rows:
        raise ValueError(f"{table.header_where}: expected at least one row below, found none")
    rows: dict[str, list[_Interval]] = {}
    for row in table.rows:
        interval = _interval(row)
        before = rows.setdefault(device_id(row.where, row.fields["device_id"]), [])
        if before and interval.start_s < before[-1].end_s:
            raise ValueError(
                f"{row.where}: the intervals of a device must rise and not overlap, found "
                f"{interval.start_s:.12g} s after {before[-1].end_s:.12g} s"
            )
        before.append(interval)
    return {
        name: AvailabilityTrace.of(
            [(span.start_s, span.end_s) for span in spans if span.is_online], spans[-1].end_s
        )
        for name, spans in rows.items()
    }


def device_id(where: str, text: str) -> str:
    """Return the name of a device without white space around it.

    Raises ValueError that begins with ``where`` unless it is printable text.
    """
    if not text.strip() or not text.isprintable():
        raise ValueError(f"{where}: device_id must be printable text, found {excerpt(text)}")
    return text.strip()


ALWAYS = AvailabilityTrace.of([(0.0, math.inf)], math.inf)
"""The trace of a device that is always online."""


class _Interval(NamedTuple):
    """An interval is one row of an availability file: a state from one instant to another."""

    start_s: float
    end_s: float
    is_online: bool


def _interval(row: Row) -> _Interval:
    start_s = row.number("start_s", MAX_TIME_S)
    end_s = row.number("end_s", MAX_TIME_S)
    if end_s <= start_s:
        raise ValueError(
            f"{row.where}: end_s must be above start_s, found {end_s:.12g} and {start_s:.12g}"
        )
    if row.fields["state"] not in STATES:
        raise ValueError(
            f"{row.where}: state must be one of {', '.join(STATES)}, "
            f"found {excerpt(row.fields['state'])}"
        )
    return _Interval(start_s, end_s, row.fields["state"] == "online")


def _seconds(value: float) -> str:
    return repr(value).removesuffix(".0")
