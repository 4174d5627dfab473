"""This module sends Ctrl-C to processes that tests begin."""

from __future__ import annotations

import signal


def heed_interrupts() -> None:
    """Let Ctrl-C end this process.

    What a shell runs in its background ignores it, and so would all that tests begin there.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
