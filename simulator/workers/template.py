"""Prepares the template, the process that workers are copies of, by importing what they need."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def preparing() -> Iterator[None]:
    """Import in this block what every worker needs, and end this process if its parent ends.

    A template that is ready listens to its parent and ends with it; until then this block watches.
    """
    is_ready = threading.Event()
    watch = threading.Thread(target=_end_with_parent, args=(os.getppid(), is_ready))
    watch.start()
    gc.disable()  # saves a sixth of the time of imports, which leave little garbage
    yield
    gc.freeze()  # the collector writes to objects that it visits, which would end their sharing
    gc.enable()
    is_ready.set()
    watch.join()  # a process with one thread can be copied safely


def _end_with_parent(parent: int, is_ready: threading.Event) -> None:
    while not is_ready.wait(0.1):
        if os.getppid() != parent:
            os._exit(1)
