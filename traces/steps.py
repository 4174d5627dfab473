"""Follows a quantity that changes in steps over time, such as a rate or a latency."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from traces.arrays import FloatArray


@dataclass(frozen=True, eq=False)
class StepTrace:
    """A step trace has one value from each of its instants to the next, and then repeats.

    ``values[i]`` holds on ``[time_s[i], time_s[i + 1])``. ``time_s`` is (n,), starts at 0 and
    increases; ``values`` is (n,), finite and >= 0; the last value ends at ``period_s``, where the
    trace begins again. With a ``period_s`` of ``inf`` the last value holds for ever. Instant 0 of
    the simulated clock lies ``offset_s`` into the trace. Raises ValueError where one of these
    fails.

    An amount is a value times seconds: the bytes of a rate, or seconds of work at a share of the
    full speed.
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
        """Return a trace whose value never changes."""
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
    def lowest(self) -> float:
        """Return the least value that the trace ever has."""
        return float(self.values.min())

    @cached_property
    def _highest(self) -> float:
        return float(self.values.max())

    @cached_property
    def _amounts(self) -> list[float]:
        """Return (n + 1,): the integral of the value from 0 to each edge.

        The last is ``inf`` where the trace ends with a value above 0 and never repeats.
        """
        held = self.values > 0  # avoids 0 * inf, which is not a number
        steps = np.zeros(len(held))
        steps[held] = self.values[held] * self.lengths_s[held]
        found: list[float] = np.concatenate([[0.0], np.cumsum(steps)]).tolist()
        return found

    @property
    def lengths_s(self) -> FloatArray:
        """Return (n,): the seconds that each value holds, the last inf in an endless trace."""
        return np.diff(np.append(self.time_s, self.period_s))

    @property
    def mean(self) -> float:
        """Return the mean value over one period, or the last value if the trace never repeats."""
        if math.isinf(self.period_s):
            return self._values[-1]
        return self._amounts[-1] / self.period_s

    def at(self, at_s: float) -> float:
        """Return the value at an instant of the simulated clock."""
        return self.at_place(at_s + self.offset_s)

    def at_place(self, place_s: float) -> float:
        """Return the value so many seconds into the trace, whatever its own offset."""
        if len(self._values) == 1:
            return self._values[0]
        step = bisect_right(self._edges, self._within(place_s)[1]) - 1
        return self._values[min(step, len(self._values) - 1)]  # divmod may round up to the period

    def amount(self, until_s: float) -> float:
        """Return the amount from the start of the trace's first loop to ``until_s``."""
        loops, within_s = self._within(until_s + self.offset_s)
        before = loops * self._amounts[-1] if loops else 0.0
        return before + self._amount_within(within_s)

    def time_to(self, amount: float, start_s: float) -> float:
        """Return the seconds from ``start_s`` until ``amount`` is reached, ``inf`` if it never is.

        This is the exact integral, in two binary searches whatever the number of loops. An amount
        above 0 takes more than 0 s, also where the clock is too large to tell its end from its
        start.
        """
        return self.time_from(amount, start_s + self.offset_s)

    def time_from(self, amount: float, place_s: float) -> float:
        """Return ``time_to`` from so many seconds into the trace, whatever its own offset."""
        if amount <= 0:
            return 0.0
        per_loop = self._amounts[-1]
        if per_loop == 0:
            return math.inf
        if len(self._values) == 1:  # without edges the quotient is the exact time
            return amount / self._values[0]
        # Amounts are counted from the start of the current loop, so that rounding errors do not
        # grow with the clock.
        is_endless = self.period_s == math.inf
        within_s = max(place_s, 0.0) if is_endless else place_s % self.period_s
        target = self._amount_within(within_s) + amount
        if is_endless:
            if target > per_loop:
                return math.inf
            return self._not_instant(self._reached_s(target) - within_s, amount)
        filled = target / per_loop
        if math.isinf(filled):  # the time is longer than a float can hold
            return math.inf
        loops = math.floor(filled)
        rest = target - loops * per_loop
        # An amount that is complete at the end of a loop is complete then, even if the next loop
        # begins with an outage.
        if rest <= 0:
            loops, rest = loops - 1, per_loop
        end_s = self._reached_s(min(rest, per_loop))
        return self._not_instant(loops * self.period_s + end_s - within_s, amount)

    def _not_instant(self, needed_s: float, amount: float) -> float:
        """Return ``needed_s``, or the least time that ``amount`` can take where that rounded to 0.

        Two instants may be too close for their difference to show; nothing is faster than the
        highest value allows.
        """
        return needed_s if needed_s > 0 else amount / self._highest

    def values_at(self, at_s: FloatArray, offsets_s: FloatArray) -> FloatArray:
        """Return ``begun_at(offset).at(instant)`` for many clocks, bit for bit: all (n,)."""
        if len(self._values) == 1:
            return np.full(len(at_s), self._values[0])
        within_s = self._all_within_s(at_s, offsets_s)
        step = np.searchsorted(np.array(self._edges), within_s, side="right") - 1
        found: FloatArray = self.values[np.minimum(step, len(self._values) - 1)]
        return found

    def _all_within_s(self, at_s: FloatArray, offsets_s: FloatArray) -> FloatArray:
        """Return how far into their loop many clocks are: all (n,)."""
        begun_s = self.offset_s + offsets_s
        if math.isfinite(self.period_s):
            begun_s = np.where(offsets_s != 0, np.mod(begun_s, self.period_s), begun_s)
            return np.mod(at_s + begun_s, self.period_s)
        return np.maximum(at_s + begun_s, 0.0)

    def times_to(
        self, amounts: FloatArray, starts_s: FloatArray, offsets_s: FloatArray
    ) -> FloatArray:
        """Return ``begun_at(offset).time_to(amount, start)`` for many clocks, bit for bit.

        All arrays are (n,), one entry a clock; amounts must be above 0.
        """
        edges, held = np.array(self._edges), np.array(self._amounts)
        values, per_loop = np.append(self.values, 0.0), self._amounts[-1]
        if per_loop == 0:
            return np.full(len(amounts), np.inf)
        if len(self._values) == 1:
            return amounts / self._values[0]
        loops_for_ever = math.isfinite(self.period_s)
        within_s = self._all_within_s(starts_s, offsets_s)
        step = np.searchsorted(edges, within_s, side="right") - 1
        # The branch that ``where`` does not take may compute inf - inf or overflow.
        with np.errstate(invalid="ignore", over="ignore"):
            into = np.where(step == len(self._values), 0.0, values[step] * (within_s - edges[step]))
            targets = held[step] + into + amounts
            if not loops_for_ever:
                ends_s = self._all_reached_s(np.minimum(targets, per_loop))
                needed_s = np.where(targets <= per_loop, ends_s - within_s, np.inf)
                return np.where(needed_s > 0, needed_s, amounts / self._highest)
            loops = np.floor(targets / per_loop)
            rest = targets - loops * per_loop
            is_edge = rest <= 0
            loops, rest = loops - is_edge, np.where(is_edge, per_loop, rest)
            ends_s = self._all_reached_s(np.minimum(rest, per_loop))
            needed_s = loops * self.period_s + ends_s - within_s
            needed_s = np.where(needed_s > 0, needed_s, amounts / self._highest)
        found: FloatArray = np.where(np.isinf(loops), np.inf, needed_s)
        return found

    def first_below(self, level: float, start_s: float, end_s: float) -> float:
        """Return the first instant in [start_s, end_s) with a value below ``level``, or ``inf``."""
        if self.lowest >= level:
            return math.inf
        at_s = start_s
        while at_s < end_s:
            if self.at(at_s) < level:
                return at_s
            at_s = self.next_change_s(at_s)
        return math.inf

    def begun_at(self, offset_s: float) -> StepTrace:
        """Return the trace for a clock that starts ``offset_s`` further into it.

        The arrays are shared with this trace, not copied.
        """
        # These are cached before the copy, so that all copies share one computation.
        _ = self._edges, self._values, self._amounts
        _ = self.lowest, self._highest
        total_s = self.begun_s(offset_s)
        # The checks of the constructor do not depend on the offset, so they are not repeated.
        begun = object.__new__(StepTrace)
        begun.__dict__.update(self.__dict__, offset_s=total_s)
        return begun

    def begun_s(self, offset_s: float) -> float:
        """Return where instant 0 lies in the trace for a clock that starts ``offset_s`` further."""
        total_s = self.offset_s + offset_s
        return total_s % self.period_s if math.isfinite(self.period_s) else total_s

    def scaled(self, factor: float) -> StepTrace:
        """Return the trace with ``factor`` times each value."""
        return replace(self, values=self.values * factor)

    def ended(self, last: float | None = None) -> StepTrace:
        """Return the trace without repetition: at its end its last value holds, or ``last``."""
        if last is None or math.isinf(self.period_s):
            return replace(self, period_s=math.inf)
        time_s = np.append(self.time_s, self.period_s)
        return replace(self, time_s=time_s, values=np.append(self.values, last), period_s=math.inf)

    def _within(self, place_s: float) -> tuple[float, float]:
        """Return how many loops have ended, and the instant within the one that goes on."""
        if self.period_s == math.inf:
            return 0.0, max(place_s, 0.0)  # the first value holds before the start too
        return divmod(place_s, self.period_s)

    def _amount_within(self, within_s: float) -> float:
        step = bisect_right(self._edges, within_s) - 1
        if step == len(self._values):  # divmod may round up to the period itself
            return self._amounts[step]
        return self._amounts[step] + self._values[step] * (within_s - self._edges[step])

    def _reached_s(self, target: float) -> float:
        """Return the instant in a loop at which its amount is ``target``, at most the loop's."""
        # bisect_left: an amount that is complete when an outage begins is not delayed by it.
        edge = bisect_left(self._amounts, target)
        if math.isinf(self._edges[edge]):
            before = edge - 1
            missing = target - self._amounts[before]
            return self._edges[before] + missing / self._values[before]
        missing = self._amounts[edge] - target
        return self._edges[edge] - (missing / self._values[edge - 1] if missing > 0 else 0.0)

    def _all_reached_s(self, targets: FloatArray) -> FloatArray:
        """Return ``_reached_s`` of many targets (n,)."""
        edges, held = np.array(self._edges), np.array(self._amounts)
        edge = np.clip(np.searchsorted(held, targets, side="left"), 1, len(self._values))
        before, rate = edge - 1, self.values[edge - 1]
        # The branch that ``where`` does not take may divide by 0.
        with np.errstate(invalid="ignore", divide="ignore"):
            from_start_s = edges[before] + (targets - held[before]) / rate
            missing = held[edge] - targets
            to_end_s = edges[edge] - np.where(missing > 0, missing / rate, 0.0)
        found: FloatArray = np.where(np.isinf(edges[edge]), from_start_s, to_end_s)
        return found

    def next_change_s(self, at_s: float) -> float:
        """Return the next instant after ``at_s`` at which a step begins, ``inf`` if none does."""
        if len(self._values) == 1:
            return math.inf
        within_s = self._within(at_s + self.offset_s)[1]
        edge = self._edges[min(bisect_right(self._edges, within_s), len(self._edges) - 1)]
        # At a large clock the difference may round to 0; the result must still be later.
        return max(at_s + (edge - within_s), math.nextafter(at_s, math.inf))
