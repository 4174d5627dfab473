"""Starts workers that are processes of this machine.

None of them outlives the process that started it, however that ends: each watches a pipe whose
other end the starter holds. On Linux they are copies of one process, the template, and the system
itself ends them where the template dies.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from typing import Any

from devices.vocabulary.trainer import TrainingError
from simulator.workers.pool import (
    Notify,
    T,
    Task,
    TaskRunner,
    Worker,
    WorkerDiedError,
    available_cores,
)

CAN_COPY = sys.platform == "linux"
"""Whether workers are copies of one process, the template, that has imported what they all need:
that takes less time and memory than each importing it. Elsewhere the system's own libraries may
not be copied once they are in use."""

TRAINING_TEMPLATE = "simulator.workers.training_template"
"""The module that a template imports for workers that train."""

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""The variable that asks for memory pages of 2 MB, since looking up small ones takes a tenth of a
step. The allocator reads it when a process starts."""

STOP_S = 30.0
"""The seconds that a worker may take to end, since a run that is stopped writes its tables."""

_CONTEXT: ForkServerContext | SpawnContext = (
    multiprocessing.get_context("forkserver") if CAN_COPY else multiprocessing.get_context("spawn")
)
_LOCK = threading.Lock()
"""A lock around starting and joining processes, which share tables of multiprocessing."""

_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl


class LocalProcesses:
    """Local processes are workers of this machine, each with a state of its own.

    With ``interrupts``, KeyboardInterrupt is raised in a task that is stopped, so that it can write
    what it has; otherwise its process ends at once.
    """

    def __init__(
        self,
        make_state: Callable[[], Any],
        *,
        templates: Sequence[str] = (TRAINING_TEMPLATE,),
        interrupts: bool = False,
    ) -> None:
        self._make_state, self._interrupts = make_state, interrupts
        if CAN_COPY:
            _start_template(templates)

    @property
    def num_free(self) -> int:
        return available_cores()

    def start(self) -> Worker:
        return _Process(self._make_state, self._interrupts)

    def close(self) -> None:
        """Do nothing, since nothing is left when the workers have ended."""


def _start_template(modules: Sequence[str]) -> None:
    """Return once the template has imported the modules and can be copied."""
    _CONTEXT.set_forkserver_preload(list(modules))
    with _no_interrupts(), _environment(HUGE_PAGES):
        forkserver.ensure_running()
    with _copying():
        _CONTEXT.Process(target=int).start()  # returns once the template can be copied


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for a process that is started here; what the user has set stays."""
    added = {key: value for key, value in values.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            del os.environ[key]


@contextmanager
def _copying() -> Iterator[None]:
    """Raise TrainingError where the template ends meanwhile."""
    try:
        yield
    except (EOFError, ConnectionError):
        raise TrainingError(
            "the process that training processes are copies of must not end while they start, but "
            "did: was it killed, or the machine out of memory?"
        ) from None


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Block SIGINT in processes that are started here: Ctrl-C is the parent's to answer.

    They inherit the mask, whichever thread starts them, and no signal to the parent is lost:
    one that comes meanwhile is answered at the end.
    """
    resource_tracker.ensure_running()  # starting it later would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Process:
    """A process is a worker as its parent sees it: tasks go in, notes and results come out."""

    def __init__(self, make_state: Callable[[], Any], interrupts: bool) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        arguments = (theirs, make_state, interrupts)
        for _ in range(50):
            # If the template has died, another is started soon.
            with suppress(EOFError, ConnectionError):
                self._process = _started(arguments)
                break
            time.sleep(0.1)
        else:
            with _copying():
                self._process = _started(arguments)
        theirs.close()  # so that the connection ends when the process ends

    def run(self, task: Task[T], notify: Notify | None = None) -> T:
        try:
            self._connection.send((task, notify is not None))
            while (message := self._connection.recv())[0] == "note":
                if notify:
                    notify(message[1])
        except (EOFError, OSError):
            raise WorkerDiedError(self._exit_code()) from None
        kind, value = message
        if kind == "error":
            raise value
        result: T = value
        return result

    def _exit_code(self) -> int | None:
        with _LOCK:
            self._process.join(STOP_S)
            code: int | None = self._process.exitcode
            return code

    def stop(self) -> None:
        with suppress(OSError):  # the process may have ended already
            self._process.terminate()

    def close(self) -> None:
        with _LOCK:
            self._process.join(STOP_S)
            if self._process.is_alive():
                self._process.kill()
        self._connection.close()


def _started(arguments: tuple[Any, ...]) -> Any:  # Any, since Process depends on the context
    process = _CONTEXT.Process(target=_serve, args=arguments)
    with _LOCK, _no_interrupts():
        process.start()
    return process


def _serve(connection: Connection, make_state: Callable[[], Any], interrupts: bool) -> None:
    """Do what the parent sends, until it closes the connection or stops this process."""
    _end_with_parent()
    if interrupts:
        signal.signal(signal.SIGTERM, _interrupt)
    with suppress(EOFError, ConnectionError, KeyboardInterrupt):
        runner = TaskRunner(make_state)
        try:
            while True:
                connection.send(_outcome(runner, connection, *connection.recv()))
        finally:
            runner.close()


def _outcome(
    runner: TaskRunner, connection: Connection, task: Task[Any], is_notifying: bool
) -> tuple[str, Any]:
    def notify(value: int) -> None:
        connection.send(("note", value))

    try:
        return "done", runner.run(task, notify) if is_notifying else runner.run(task)
    except ConnectionError:
        raise  # the parent process has ended, so nobody waits for the result
    except Exception as error:
        if not isinstance(error, TrainingError):  # a TrainingError needs no traceback
            error.add_note(f"in a worker:\n{traceback.format_exc()}")
        return "error", error


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    """Have this process end when the one that it works for does, however that ends."""
    if CAN_COPY:  # Linux kills this process when the template that it is copied from dies
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    threading.Thread(target=_watch_parent, daemon=True).start()


def _watch_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent, "a worker is started by another process"
    wait([parent.sentinel])
    os._exit(1)
