"""Workers that are processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, SpawnContext

from devices.vocabulary.trainer import ChunkedTrainer, TrainingError
from simulator.workers.executor import Station, T, Task, Worker, WorkerDiedError, available_cores

CAN_COPY = sys.platform == "linux"
"""Whether workers are copies of one process, the template, that has imported what they all need:
that takes less time and memory than each importing it. Elsewhere the system's own libraries may
not be copied once they are in use."""

TEMPLATE = "simulator.workers.template"

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Asks Linux for pages of 2 MB: to find where small ones lie takes a tenth of a step. The allocator
reads it when a process starts."""

LOOKS_EVERY_S = 1.0
"""How long a worker may outlive the process that it was copied from."""

_CONTEXT: ForkServerContext | SpawnContext = (
    multiprocessing.get_context("forkserver") if CAN_COPY else multiprocessing.get_context("spawn")
)

_station: Station | None = None  # the worker process's own


class LocalProcesses:
    """As many processes as are asked for, each with a model of its own."""

    def __init__(self, make_trainer: Callable[[], ChunkedTrainer]) -> None:
        self._make_trainer = make_trainer
        if CAN_COPY:
            _start_template()

    @property
    def num_free(self) -> int:
        return available_cores()

    def start(self) -> Worker:
        return _ProcessWorker(self._make_trainer)

    def close(self) -> None:
        """Nothing is left when the workers are closed."""


def _start_template() -> None:
    """Return when it is ready, unless Ctrl-C is quicker."""
    _CONTEXT.set_forkserver_preload([TEMPLATE])
    with no_interrupts(), _environment(HUGE_PAGES):
        forkserver.ensure_running()
    with _copying():
        _CONTEXT.Process(target=int).start()  # this is what waits: the first copy can be made


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """For a process that is started here; what the user has set stays."""
    added = {key: value for key, value in values.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            del os.environ[key]


@contextmanager
def _copying() -> Iterator[None]:
    """Raises TrainingError where the template ends meanwhile."""
    try:
        yield
    except (EOFError, ConnectionError):
        raise TrainingError(
            "the process that training processes are copies of must not end while they start, but "
            "did: was it killed, or the machine out of memory?"
        ) from None


def _begun(make_trainer: Callable[[], ChunkedTrainer]) -> ProcessPoolExecutor:
    pool = ProcessPoolExecutor(1, mp_context=_CONTEXT, initializer=_start, initargs=(make_trainer,))
    with no_interrupts():
        pool.submit(int)  # which starts the process
    return pool


class _ProcessWorker:
    def __init__(self, make_trainer: Callable[[], ChunkedTrainer]) -> None:
        for _ in range(50):
            with suppress(EOFError, ConnectionError):  # the template died: soon there is another
                self._pool = _begun(make_trainer)
                return
            time.sleep(0.1)
        with _copying():
            self._pool = _begun(make_trainer)

    def do(self, task: Task[T]) -> T:
        try:
            future = self._pool.submit(_do, task)
        except RuntimeError:  # broken, or closed by who waits for it no longer
            raise WorkerDiedError from None
        try:
            return future.result()
        except (BrokenProcessPool, CancelledError):
            raise WorkerDiedError from None

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def no_interrupts() -> Iterator[None]:
    """Block SIGINT in processes that are started here: Ctrl-C is the parent's to answer.

    They inherit the mask, whichever thread starts them, and no signal to the parent is lost:
    one that comes meanwhile is answered at the end.
    """
    resource_tracker.ensure_running()  # it would unblock the signal in the middle
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(make_trainer: Callable[[], ChunkedTrainer]) -> None:
    global _station
    end_with_parent()
    _station = Station(make_trainer)


def end_with_parent() -> None:
    """Have this process end when the one that it works for does, however that ends.

    Nobody else would end it where its parent is killed, or the template that it is a copy of.
    """
    threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()


def _watch_parent(started_by: int) -> None:
    parent = multiprocessing.parent_process()
    assert parent, "a worker is started by another process"
    while os.getppid() == started_by and not wait([parent.sentinel], LOOKS_EVERY_S):
        pass
    os._exit(1)


def _do(task: Task[T]) -> T:
    assert _station is not None, "a worker starts by making its trainer"
    return _station.do(task)
