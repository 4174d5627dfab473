"""Chooses units and rounds numbers for readers: one unit for a whole row or axis.

Numbers are in SI base units everywhere else. 1 kB is 1e3 bytes, 1 MB 1e6, 1 GB 1e9.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

NO_NUMBER = "–"
"""The text in a table where there is no number."""


class Unit(NamedTuple):
    """A unit has a name and a size; ``value / size`` is the number to print before the name."""

    name: str
    size: float


class Scale(NamedTuple):
    """A scale holds the units that a quantity may stand in, and how its numbers are rounded.

    ``rounding`` is "significant" for three significant digits, "whole" for counts (a mean of
    counts has three significant digits), "hundredths" for ratios.
    """

    units: tuple[Unit, ...]
    rounding: Literal["significant", "whole", "hundredths"] = "significant"

    def unit(self, values: Iterable[float]) -> Unit:
        """Return the largest unit in which the largest finite value is at least 3."""
        largest = max((value for value in values if math.isfinite(value)), default=0.0)
        units = reversed(self.units)
        return next((unit for unit in units if largest >= 3 * unit.size), self.units[0])

    def number(self, value: float, unit: Unit) -> str:
        """Return the value in this unit, rounded and without the unit's name."""
        scaled = value / unit.size
        if self.rounding == "whole" and scaled.is_integer():
            return f"{scaled:,.0f}"
        if self.rounding == "hundredths":
            return f"{scaled:,.2f}"
        return significant(scaled)

    def text(self, value: float) -> str:
        """Return one value with the unit that suits it, such as ``3.33 min``."""
        unit = self.unit([abs(value)])
        return f"{self.number(value, unit)} {unit.name}".rstrip()


ONE = Unit("", 1.0)
PLAIN = Scale((ONE,))
COUNT = Scale((ONE,), "whole")
RATIO = Scale((ONE,), "hundredths")
PERCENT = Scale((Unit("%", 0.01),))
SECONDS = Scale((Unit("s", 1.0), Unit("min", 60.0), Unit("h", 3600.0)))
BYTES = Scale((Unit("kB", 1e3), Unit("MB", 1e6), Unit("GB", 1e9)))
JOULES = Scale((Unit("J", 1.0), Unit("kJ", 1e3), Unit("MJ", 1e6)))


def significant(value: float) -> str:
    """Return the value with three significant digits, and never fewer than its integer digits.

    From 10^12 on and below 10^-6 the digits would hide the number: there it is ``1.23e+45``.
    """
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    short = f"{value:.2e}"
    exponent = int(short.partition("e")[2])  # taken after rounding, so that 0.9996 counts as 1.00
    if not -6 <= exponent < 12:
        return short
    decimals = max(0, 2 - exponent)
    return f"{value:,.{decimals}f}"


def title(name: str, unit: Unit) -> str:
    """Return the title of an axis or row, with the unit in brackets where there is one."""
    return f"{name} ({unit.name})" if unit.name else name
