"""SI quantities in the unit a reader wants: one unit for a whole column or axis."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple


class Unit(NamedTuple):
    """``value / size`` is the number to print before ``name``."""

    name: str
    size: float


ONE = Unit("", 1.0)
PERCENT = Unit("%", 0.01)
SECONDS = (Unit("s", 1.0), Unit("min", 60.0), Unit("h", 3600.0))
BYTES = (Unit("kB", 1e3), Unit("MB", 1e6), Unit("GB", 1e9))
JOULES = (Unit("J", 1.0), Unit("kJ", 1e3), Unit("MJ", 1e6))


def choose(scale: tuple[Unit, ...], values: Iterable[float]) -> Unit:
    """The largest unit of the scale in which the largest value is at least 3."""
    largest = max((value for value in values if math.isfinite(value)), default=0.0)
    return next((unit for unit in reversed(scale) if largest >= 3 * unit.size), scale[0])


def significant(value: float) -> str:
    """The value with three significant digits, and never fewer than its integer digits."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"
