"""The process that workers are copies of imports here what they need."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def preparing() -> Iterator[None]:
    """Import in this block what every worker needs; the process ends where its parent does.

    Once it listens to its parent a template ends with it, but that is seconds from now.
    """
    is_ready = threading.Event()
    watch = threading.Thread(target=_end_with_parent, args=(os.getppid(), is_ready))
    watch.start()
    gc.disable()  # a sixth of the time, and what is imported stays
    yield
    gc.freeze()  # to look at an object in vain is to write to memory that workers share
    gc.enable()
    is_ready.set()
    watch.join()  # a process with one thread can be copied safely


def _end_with_parent(parent: int, is_ready: threading.Event) -> None:
    while not is_ready.wait(0.1):
        if os.getppid() != parent:
            os._exit(1)
