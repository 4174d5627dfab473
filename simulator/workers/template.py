"""What every worker imports, for the process that workers are copies of."""

import gc
import os
import threading

_is_ready = threading.Event()


def _end_with_parent(parent: int) -> None:
    """End this process where its parent does before it listens to anybody, seconds from now."""
    while not _is_ready.wait(0.1):
        if os.getppid() != parent:
            os._exit(1)


_watch = threading.Thread(target=_end_with_parent, args=(os.getppid(),))
_watch.start()
gc.disable()  # a sixth of the time, and what is imported stays

import devices.training.trainer  # noqa: E402, F401
import simulator.workers.trainers  # noqa: E402, F401

gc.freeze()  # to look at an object in vain is to write to memory that workers share
gc.enable()
_is_ready.set()
_watch.join()  # a process with one thread can be copied safely
