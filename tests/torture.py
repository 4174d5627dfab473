"""How much of the long tests is run: a short slice, or as much as ``make torture`` asks for.

A test whose length is ``scaled`` bears the marker ``torture``, by which ``make torture`` finds it.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

SHARE = float(os.environ.get("FEDCLOCK_TORTURE", "0"))
"""Of the full number of tries: 0 is the short slice, 1 is all of them."""
SEED = int(os.environ.get("FEDCLOCK_SEED", "0"))
"""Of what is drawn at random: another one tries other inputs."""


def scaled(short: int, full: int) -> int:
    """Return the number of tries of a test: ``short``, or the share of ``full`` if that is more."""
    return max(short, round(SHARE * full))


ALONE = (
    pytest.mark.torture,
    pytest.mark.skipif(not SHARE, reason="long by nature: make torture runs it"),
)
"""Marks of a parameter that is long by nature: ``make torture`` alone runs a test with it."""


def alone(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that is long by nature: ``make torture`` alone runs it."""
    for mark in ALONE:
        test = mark(test)
    return test
