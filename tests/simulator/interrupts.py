"""Ctrl-C for processes that tests begin."""

from __future__ import annotations

import signal


def heed_interrupts() -> None:
    """Before a child's program: what a shell runs in its background ignores Ctrl-C, and so would
    all that the tests begin from there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
