"""Defines the pool of workers, which does trainings as well as whole runs.

A worker is a process with a state of its own (a trainer, say), on this machine or another. What a
task returns depends on the task and that state alone, so neither the number of workers, nor who
does which task, nor that one of them dies can change a result.

The pools of well-kept libraries (concurrent.futures, loky, Ray's) know no priorities, or give up
all tasks when one worker dies, or cannot run here and in a cluster.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from itertools import count
from queue import Empty, PriorityQueue
from threading import Lock, Thread
from typing import Any, Protocol, TypeVar

from devices.vocabulary.trainer import TrainingError

T = TypeVar("T")
Task = Callable[..., T]
"""A function that a worker calls with its state and, where notes are asked for, with a function to
send them. It is pickled for the worker, so it must be a module's function or a partial of one."""
Notify = Callable[[int], None]

URGENT, BACKGROUND = 0, 1
"""Priorities of tasks: the caller waits for the result, or goes on meanwhile."""
CLOSED = "the pool is closed"


@dataclass(frozen=True)
class Workload:
    """A workload says what a pool's tasks are to the user, and how often one is tried."""

    process: str
    option: str  # the command's option for the number of workers
    max_deaths: int  # after this many workers have died at one task, it is given up


TRAININGS = Workload("a training process", "--workers", max_deaths=3)
RUNS = Workload("its process", "--jobs", max_deaths=1)


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerDiedError(Exception):
    """This error says that a worker ended before its task did, with its exit code where known."""

    def __init__(self, exit_code: int | None = None) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class Worker(Protocol):
    """A worker is a process that does one task after the other."""

    def run(self, task: Task[T], notify: Notify | None = None) -> T:
        """Return or raise what the task does; ``notify`` is told what the task says meanwhile.

        Raises WorkerDiedError where the worker has ended, and TrainingError where it could not make
        its state.
        """
        ...

    def stop(self) -> None:
        """Tell the worker to end, from any thread, whatever it is doing."""
        ...

    def close(self) -> None:
        """Return once a worker that was stopped has ended."""
        ...


class Backend(Protocol):
    """A backend starts workers in one place: this machine, or a cluster."""

    @property
    def num_free(self) -> int:
        """Return how many workers there is room for."""
        ...

    def start(self) -> Worker:
        """Start another worker and return before it is ready, so that several start at once."""
        ...

    def close(self) -> None:
        """Free what the backend holds beside its workers, which have ended."""
        ...


class TaskRunner:
    """A task runner makes a worker's state once and calls each task with it."""

    def __init__(self, make_state: Callable[[], Any]) -> None:
        self._stack = ExitStack()
        self._state: Any = None
        self._why_not = ""
        try:
            self._state = make_state()
            if isinstance(self._state, AbstractContextManager):
                self._stack.enter_context(self._state)
        except TrainingError as error:
            self._why_not = str(error)

    def run(self, task: Task[T], *notify: Notify) -> T:
        """Return what the task does. Raises TrainingError where the state could not be made."""
        if self._why_not:
            raise TrainingError(self._why_not)
        return task(self._state, *notify)

    def close(self) -> None:
        """End what the state holds."""
        self._stack.close()


class _Slot:
    """A slot holds one worker of a pool, and starts another when that one dies."""

    def __init__(self, backend: Backend, workload: Workload) -> None:
        self._backend, self._workload, self._worker = backend, workload, backend.start()
        self._is_ready, self._is_stopped, self._lock = False, False, Lock()
        self._why_not: BaseException | None = None

    def wait(self) -> None:
        """Return when the worker is ready, or none can be, or the slot is stopped."""
        try:
            for _ in range(TRAININGS.max_deaths):
                if self._is_ready or self._is_stopped:
                    return
                with suppress(WorkerDiedError):
                    self.run(_do_nothing, None)
                    self._is_ready = True
                    return
            raise _too_many_deaths(self._workload, TRAININGS.max_deaths, "before they could begin")
        except BaseException as error:  # every task of this slot will raise it
            self._why_not = error

    def run(self, task: Task[T], notify: Notify | None) -> T:
        """Run the task; where the worker dies, start another, which ``wait`` waits for."""
        if self._why_not:
            raise self._why_not
        try:
            return self._worker.run(task, notify)
        except WorkerDiedError:
            self._replace()
            raise

    def _replace(self) -> None:
        with self._lock:
            self._worker.stop()
            self._worker.close()
            self._is_ready = False
            if not self._is_stopped:
                self._worker = self._backend.start()

    def stop(self) -> None:
        """Stop the worker, and start no other."""
        with self._lock:
            self._is_stopped = True
            self._worker.stop()

    def close(self) -> None:
        self._worker.close()


def _too_many_deaths(
    workload: Workload, number: int, when: str, exit_code: int | None = None
) -> TrainingError:
    code = "" if exit_code is None else f" (exit code {exit_code})"
    return TrainingError(
        f"{workload.process} must not end before its work is done, but {number} did {when}{code}: "
        f"was it killed, or the machine out of memory? Fewer {workload.option} need less"
    )


@dataclass(order=True)
class _QueuedTask:
    """A queued task waits for a free worker; one with ``task`` None tells a thread to end."""

    priority: int
    turn: int
    task: Task[Any] | None = field(compare=False)
    notify: Notify | None = field(compare=False, default=None)
    future: Future[Any] = field(compare=False, default_factory=Future)
    num_deaths: int = field(compare=False, default=0)


class Pool:
    """A pool does tasks on workers, the urgent ones first, and replaces a worker that dies.

    It begins with the first worker that is ready: others may have to wait until there is room for
    them, and so may the successor of one whose machine is gone. A task whose worker dies goes to
    whoever is free, as often as the workload says. Raises TrainingError where a worker cannot make
    its state.
    """

    def __init__(
        self, backend: Backend, num_workers: int, *, workload: Workload = TRAININGS
    ) -> None:
        self._backend, self._workload = backend, workload
        self._queue: PriorityQueue[_QueuedTask] = PriorityQueue()
        self._turns, self._lock, self._is_closed = count(), Lock(), False
        self._slots: list[_Slot] = []
        self._threads: list[Thread] = []
        try:
            for _ in range(num_workers):
                self._slots.append(_Slot(backend, workload))
            for slot in self._slots:
                self._threads.append(Thread(target=self._serve, args=(slot,), daemon=True))
                self._threads[-1].start()
            self.submit(_do_nothing).result()
        except BaseException:
            self.close()
            raise

    def submit(
        self, task: Task[T], priority: int = URGENT, *, notify: Notify | None = None
    ) -> Future[T]:
        """Queue a task; those of one priority begin in the order in which they are submitted."""
        queued = _QueuedTask(priority, next(self._turns), task, notify)
        with self._lock:
            if self._is_closed:
                raise CancelledError(CLOSED)
            self._queue.put(queued)
        return queued.future

    def close(self) -> None:
        """End the workers at once, whatever they do; tasks that are not done are cancelled."""
        with self._lock:
            self._is_closed = True
            with suppress(Empty):  # ends the loop; workers take tasks at the same time
                while True:
                    _cancel(self._queue.get_nowait().future)
        for slot in self._slots:
            slot.stop()
            self._queue.put(_QueuedTask(URGENT, next(self._turns), None))
        for thread in self._threads:
            thread.join()
        for slot in self._slots:
            slot.close()
        self._backend.close()

    def _serve(self, slot: _Slot) -> None:
        slot.wait()
        while (queued := self._queue.get()).task:
            if queued.num_deaths or queued.future.set_running_or_notify_cancel():
                self._run(queued.task, queued, slot)
            slot.wait()

    def _run(self, task: Task[Any], queued: _QueuedTask, slot: _Slot) -> None:
        try:
            queued.future.set_result(slot.run(task, queued.notify))
        except WorkerDiedError as error:
            self._retry(queued, error.exit_code)
        except BaseException as error:  # raised where the caller waits for the result
            queued.future.set_exception(error)

    def _retry(self, queued: _QueuedTask, exit_code: int | None) -> None:
        queued.num_deaths += 1
        with self._lock:
            if self._is_closed:
                _cancel(queued.future)
            elif queued.num_deaths < self._workload.max_deaths:
                self._queue.put(queued)
            else:
                when = "at the same work"
                error = _too_many_deaths(self._workload, queued.num_deaths, when, exit_code)
                queued.future.set_exception(error)


def _cancel(future: Future[Any]) -> None:
    """Cancel a task, whether it still waits or has begun on a worker that died."""
    if not future.cancel():
        future.set_exception(CancelledError(CLOSED))


def _do_nothing(_: object) -> None:
    """Do nothing: a worker that carries out this task is ready."""
