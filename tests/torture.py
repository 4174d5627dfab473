"""Says how much of the long tests is run: a short slice, or as much as ``make torture`` asks for.

A test whose length is ``scaled`` bears the marker ``torture``, by which ``make torture`` finds it.
What takes seconds, such as whole commands and real training, is ``long``: ``.ci/run`` runs it too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from _pytest.mark.structures import ParameterSet

SHARE = float(os.environ.get("FEDCLOCK_TORTURE", "0"))
"""The share of the full number of tries: 0 is the short slice, 1 is all of them."""
SEED = int(os.environ.get("FEDCLOCK_SEED", "0"))
"""The seed of what is drawn at random: another one tries other inputs."""


def scaled(short: int, full: int, *, least: int = 0) -> int:
    """Return the number of tries of a test: ``short``, or the share of ``full`` if that is more.

    Where any long test runs, as in ``.ci/run``, it is no fewer than ``least``.
    """
    return max(short, round(SHARE * full), least if SHARE else 0)


LONG = (
    pytest.mark.torture,
    pytest.mark.skipif(not SHARE, reason="long: .ci/run and make torture run it"),
)
"""Marks of a parameter that makes a test long: ``make test`` leaves it out."""


def some(cases: Iterable[Any], every: int) -> list[ParameterSet]:
    """Return the cases of a test, of which ``make test`` runs the first of every so many."""
    return [
        pytest.param(*(case if type(case) is tuple else (case,)), marks=LONG if k % every else ())
        for k, case in enumerate(cases)
    ]


def long(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that is long by nature: ``make test`` leaves it out."""
    for mark in LONG:
        test = mark(test)
    return test
