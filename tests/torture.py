"""How much of the long tests is run: a short slice, or as much as ``make torture`` asks for."""

from __future__ import annotations

import os

SHARE = float(os.environ.get("FEDCLOCK_TORTURE", "0"))
"""Of the full number of tries: 0 is the short slice, 1 is all of them."""


def scaled(short: int, full: int) -> int:
    """Tries of a test: ``short`` ones in continuous integration, ``full`` ones in the long run."""
    return max(short, round(SHARE * full))
