"""A quantity that changes in steps over time: a rate, a latency, a share of what a device has."""

from __future__ import annotations

import copy
import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from traces.arrays import FloatArray


@dataclass(frozen=True, eq=False)
class StepTrace:
    """``values[i]`` holds on ``[time_s[i], time_s[i + 1])``; the whole repeats every ``period_s``.

    ``time_s`` is (n,), starts at 0 and increases; ``values`` is (n,), finite and >= 0; ``period_s``
    is where the last value ends, and where it is ``inf`` the last value holds for ever. A clock's
    instant 0 lies ``offset_s`` into the trace. Raises ValueError where one of these fails.

    Amounts are values times seconds: bytes of a rate, or seconds of work of a share of the speed.
    """

    time_s: FloatArray
    values: FloatArray
    period_s: float
    offset_s: float = 0.0

    def __post_init__(self) -> None:
        time_s, values = self.time_s, self.values
        if len(time_s) == 0 or time_s.shape != values.shape:
            raise ValueError(
                f"a trace needs as many values as times and at least one of each, "
                f"got {len(time_s)} times and {len(values)} values"
            )
        if not (np.isfinite(time_s).all() and np.isfinite(values).all()):
            raise ValueError("times and values must be finite numbers")
        if math.isnan(self.period_s):
            raise ValueError("the period must be a number, got nan")
        if time_s[0] != 0:
            raise ValueError(f"the first time must be 0, got {time_s[0]:g}")
        edges = np.append(time_s, self.period_s)
        if (np.diff(edges) <= 0).any():
            at = int(np.argmax(np.diff(edges) <= 0))
            raise ValueError(f"times must increase, got {edges[at + 1]:g} after {edges[at]:g}")
        if (values < 0).any():
            raise ValueError(f"values must be >= 0, got {values[values < 0][0]:g}")

    @classmethod
    def constant(cls, value: float) -> StepTrace:
        """One value for ever."""
        return cls(np.zeros(1), np.array([float(value)]), math.inf)

    # Lists and bisect rather than arrays and searchsorted: for one instant they take a tenth of
    # the time, and a simulation asks for one instant at a time.

    @cached_property
    def _edges(self) -> list[float]:
        return [*self.time_s.tolist(), self.period_s]

    @cached_property
    def _values(self) -> list[float]:
        found: list[float] = self.values.tolist()
        return found

    @cached_property
    def _lowest(self) -> float:
        return float(self.values.min())

    @cached_property
    def _amounts(self) -> list[float]:
        """(n + 1,): amount from 0 to each edge; the last is ``inf`` where the trace never ends."""
        lengths = np.diff(np.append(self.time_s, self.period_s))
        held = self.values > 0  # what is 0 adds nothing, however long
        steps = np.zeros(len(lengths))
        steps[held] = self.values[held] * lengths[held]
        found: list[float] = np.concatenate([[0.0], np.cumsum(steps)]).tolist()
        return found

    @property
    def mean(self) -> float:
        """Average value over one period; the last value of a trace that does not repeat."""
        if math.isinf(self.period_s):
            return self._values[-1]
        return self._amounts[-1] / self.period_s

    def at(self, at_s: float) -> float:
        """The value at an instant."""
        step = bisect_right(self._edges, self._within(at_s)[1]) - 1
        return self._values[min(step, len(self._values) - 1)]  # divmod may round up to the period

    def amount(self, until_s: float) -> float:
        """Value times seconds, from the start of the trace's first loop to ``until_s``."""
        loops, within_s = self._within(until_s)
        before = loops * self._amounts[-1] if loops else 0.0
        return before + self._amount_within(within_s)

    def time_to(self, amount: float, start_s: float) -> float:
        """Seconds from ``start_s`` until ``amount`` has come together; ``inf`` if it never does.

        The exact integral: two binary searches, whatever the number of loops.
        """
        if amount <= 0:
            return 0.0
        per_loop = self._amounts[-1]
        if per_loop == 0:
            return math.inf
        if len(self._values) == 1:  # no edge in the way: nothing to round at
            return amount / self._values[0]
        # Counted from the start of the loop in which it begins, so that precision does not fade
        # as the clock grows.
        within_s = self._within(start_s)[1]
        target = self._amount_within(within_s) + amount
        if math.isinf(self.period_s):
            return self._reached_s(target) - within_s if target <= per_loop else math.inf
        filled = target / per_loop
        if math.isinf(filled):  # so slow that no float holds the time
            return math.inf
        loops = math.floor(filled)
        rest = target - loops * per_loop
        if rest <= 0:  # what ends on a loop's edge ends with the loop before, ahead of any outage
            loops, rest = loops - 1, per_loop
        end_s = self._reached_s(min(rest, per_loop))
        return max(loops * self.period_s + end_s - within_s, 0.0)

    def times_to(
        self, amounts: FloatArray, starts_s: FloatArray, offsets_s: FloatArray
    ) -> FloatArray:
        """``begun_at(offset).time_to(amount, start)`` for many clocks on this trace, bit for bit.

        All arrays are (n,); amounts must be above 0.
        """
        edges, held = np.array(self._edges), np.array(self._amounts)
        values, per_loop = np.append(self.values, 0.0), self._amounts[-1]
        if per_loop == 0:
            return np.full(len(amounts), np.inf)
        if len(self._values) == 1:
            return amounts / self._values[0]
        loops_for_ever = math.isfinite(self.period_s)
        begun_s = self.offset_s + offsets_s
        if loops_for_ever:
            begun_s = np.where(offsets_s != 0, np.mod(begun_s, self.period_s), begun_s)
            within_s = np.mod(starts_s + begun_s, self.period_s)
        else:
            within_s = np.maximum(starts_s + begun_s, 0.0)
        step = np.searchsorted(edges, within_s, side="right") - 1
        with np.errstate(invalid="ignore", over="ignore"):  # in what ``where`` leaves out
            into = np.where(step == len(self._values), 0.0, values[step] * (within_s - edges[step]))
            targets = held[step] + into + amounts
            if not loops_for_ever:
                ends_s = self._all_reached_s(np.minimum(targets, per_loop))
                return np.where(targets <= per_loop, ends_s - within_s, np.inf)
            loops = np.floor(targets / per_loop)
            rest = targets - loops * per_loop
            is_edge = rest <= 0
            loops, rest = loops - is_edge, np.where(is_edge, per_loop, rest)
            ends_s = self._all_reached_s(np.minimum(rest, per_loop))
            needed_s = np.maximum(loops * self.period_s + ends_s - within_s, 0.0)
        found: FloatArray = np.where(np.isinf(loops), np.inf, needed_s)
        return found

    def first_below(self, level: float, start_s: float, end_s: float) -> float:
        """The first instant in ``[start_s, end_s)`` with a value below ``level``; else ``inf``."""
        if self._lowest >= level:
            return math.inf
        at_s = start_s
        while at_s < end_s:
            if self.at(at_s) < level:
                return at_s
            at_s = self.next_change_s(at_s)
        return math.inf

    def begun_at(self, offset_s: float) -> StepTrace:
        """The same trace, for a clock that starts ``offset_s`` further into it. Nothing is copied.

        A trace that does not repeat is begun within its length.
        """
        _ = self._edges, self._values, self._amounts, self._lowest  # once, for all copies
        begun = copy.copy(self)
        total_s = self.offset_s + offset_s
        if math.isfinite(self.period_s):
            total_s %= self.period_s
        object.__setattr__(begun, "offset_s", total_s)
        return begun

    def scaled(self, factor: float) -> StepTrace:
        """The same shape at ``factor`` times the value."""
        return replace(self, values=self.values * factor)

    def ended(self, last: float | None = None) -> StepTrace:
        """The trace played once: then its last value holds, or the value ``last``."""
        if last is None or math.isinf(self.period_s):
            return replace(self, period_s=math.inf)
        time_s = np.append(self.time_s, self.period_s)
        return replace(self, time_s=time_s, values=np.append(self.values, last), period_s=math.inf)

    def _within(self, at_s: float) -> tuple[float, float]:
        """Loops ended, and the instant within the one that goes on."""
        if math.isinf(self.period_s):
            return 0.0, max(at_s + self.offset_s, 0.0)  # before its start it is as at its start
        return divmod(at_s + self.offset_s, self.period_s)

    def _amount_within(self, within_s: float) -> float:
        step = bisect_right(self._edges, within_s) - 1
        if step == len(self._values):  # divmod may round up to the period itself
            return self._amounts[step]
        return self._amounts[step] + self._values[step] * (within_s - self._edges[step])

    def _reached_s(self, target: float) -> float:
        """The instant within a loop at which its amount is ``target``, in (0, a loop's]."""
        # bisect_left: where nothing comes, it was complete when that began.
        edge = bisect_left(self._amounts, target)
        if math.isinf(self._edges[edge]):
            before = edge - 1
            missing = target - self._amounts[before]
            return self._edges[before] + missing / self._values[before]
        missing = self._amounts[edge] - target
        return self._edges[edge] - (missing / self._values[edge - 1] if missing > 0 else 0.0)

    def _all_reached_s(self, targets: FloatArray) -> FloatArray:
        """``_reached_s`` of many targets."""
        edges, held = np.array(self._edges), np.array(self._amounts)
        edge = np.clip(np.searchsorted(held, targets, side="left"), 1, len(self._values))
        before, rate = edge - 1, self.values[edge - 1]
        with np.errstate(invalid="ignore", divide="ignore"):  # in what ``where`` leaves out
            from_start_s = edges[before] + (targets - held[before]) / rate
            missing = held[edge] - targets
            to_end_s = edges[edge] - np.where(missing > 0, missing / rate, 0.0)
        found: FloatArray = np.where(np.isinf(edges[edge]), from_start_s, to_end_s)
        return found

    def next_change_s(self, at_s: float) -> float:
        """The next instant after ``at_s`` at which a step begins; ``inf`` if none ever does."""
        if len(self._values) == 1:
            return math.inf
        within_s = self._within(at_s)[1]
        edge = self._edges[min(bisect_right(self._edges, within_s), len(self._edges) - 1)]
        # At a large clock the difference may round to nothing, and time must go on.
        return max(at_s + (edge - within_s), math.nextafter(at_s, math.inf))
