"""Training on several workers at once, with the same result as on one.

A worker is a process with a trainer of its own, on this machine or another. A job's result depends
on the job and its stack alone, and every worker computes on one thread, so neither the number of
workers, nor who takes which stack, nor that one of them dies can change it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from queue import Empty, PriorityQueue
from threading import Lock, Thread
from typing import Any, Protocol, TypeVar

from safetensors import SafetensorError

from devices.vocabulary.trainer import (
    ChunkedTrainer,
    TrainingError,
)

T = TypeVar("T")
Task = Callable[[ChunkedTrainer], T]
"""What a worker does with its trainer. It travels to the worker, so it is a partial of a function
of a module."""

MAX_DEATHS = 3
"""How many workers a task may take with it before it is given up."""
AT_ONCE, MEANWHILE = 0, 1
"""How urgent a task is: the server waits for it, or goes on."""
GONE_HOME = "the workers have gone home"


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerDiedError(Exception):
    """A worker ended before its work was done."""


class Worker(Protocol):
    """A process with a trainer of its own that does one task after the other."""

    def do(self, task: Task[T]) -> T:
        """What the task returns or raises; WorkerDiedError where there is no worker any more.

        Raises TrainingError where the worker has no trainer.
        """
        ...

    def close(self) -> None: ...


class Site(Protocol):
    """Where workers run."""

    @property
    def num_free(self) -> int:
        """How many workers there is room for."""
        ...

    def start(self) -> Worker:
        """Another worker; returns before it is ready, so that several can become so at once."""
        ...

    def close(self) -> None: ...


class Station:
    """The worker's side: makes its trainer once, and does what comes with it."""

    def __init__(self, make_trainer: Callable[[], ChunkedTrainer]) -> None:
        self._trainer: ChunkedTrainer | None = None
        self._why_not = ""
        try:
            with loading():
                self._trainer = make_trainer()
        except TrainingError as error:
            self._why_not = str(error)

    def do(self, task: Task[T]) -> T:
        """Raises TrainingError where there is no trainer."""
        if self._trainer is None:
            raise TrainingError(self._why_not)
        return task(self._trainer)


@contextmanager
def loading() -> Iterator[None]:
    """Say in words why a model cannot be loaded."""
    try:
        yield
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainingError(f"the model cannot be loaded: {first_line}") from None


class _Seat:
    """One worker, and after it dies another."""

    def __init__(self, site: Site) -> None:
        self._site, self._worker = site, site.start()
        self._is_ready, self._is_left, self._lock = False, False, Lock()
        self._why_not: BaseException | None = None

    def wait(self) -> None:
        """Until the worker can work, or it is known why none can, or the seat is left."""
        try:
            for _ in range(MAX_DEATHS):
                if self._is_ready or self._is_left:
                    return
                with suppress(WorkerDiedError):
                    self.do(_nothing)
                    self._is_ready = True
                    return
            raise _too_many_deaths("before they could begin")
        except BaseException as error:  # the one who waits for its work is to hear of it
            self._why_not = error

    def do(self, task: Task[T]) -> T:
        """Raises WorkerDiedError, and has another worker come, which ``wait`` waits for."""
        if self._why_not:
            raise self._why_not
        try:
            return self._worker.do(task)
        except WorkerDiedError:
            self._replace()
            raise

    def _replace(self) -> None:
        with self._lock:
            self._worker.close()
            self._is_ready = False
            if not self._is_left:
                self._worker = self._site.start()

    def leave(self) -> None:
        """Wait no longer for a worker, and have no other come."""
        with self._lock:
            self._is_left = True
            if not self._is_ready:
                self._worker.close()

    def close(self) -> None:
        self._worker.close()


def _too_many_deaths(when: str) -> TrainingError:
    return TrainingError(
        f"a training process must not end before its work is done, but {MAX_DEATHS} did {when}: "
        "were they killed, or the machine out of memory? Fewer --workers need less"
    )


@dataclass(order=True)
class _Order:
    """A task on its way to whoever is free."""

    urgency: int
    turn: int
    task: Task[Any] | None = field(compare=False)  # None: go home
    future: Future[Any] = field(compare=False, default_factory=Future)
    num_deaths: int = field(compare=False, default=0)


class Executor:
    """Does tasks on workers, the urgent ones first, and replaces a worker that dies.

    It begins with the first worker that is ready: others may have to wait until there is room for
    them, and so may who replaces one whose machine is gone. What a worker was at when it died goes
    to whoever is free. Raises TrainingError where a worker has no trainer.
    """

    def __init__(self, site: Site, num_workers: int) -> None:
        self._site = site
        self._orders: PriorityQueue[_Order] = PriorityQueue()
        self._turns, self._lock, self._is_closed = count(), Lock(), False
        self._seats = [_Seat(site) for _ in range(num_workers)]
        self._threads = [
            Thread(target=self._serve, args=(seat,), daemon=True) for seat in self._seats
        ]
        for thread in self._threads:
            thread.start()
        try:
            self.submit(_nothing).result()
        except BaseException:
            self.close()
            raise

    def submit(self, task: Task[T], urgency: int = AT_ONCE) -> Future[T]:
        """Have it done; among equally urgent tasks in this order."""
        order = _Order(urgency, next(self._turns), task)
        with self._lock:
            if self._is_closed:
                raise CancelledError(GONE_HOME)
            self._orders.put(order)
        return order.future

    def close(self) -> None:
        """End the workers once they are done with what they are at; the rest is cancelled."""
        with self._lock:
            self._is_closed = True
            with suppress(Empty):  # the workers may be quicker
                while True:
                    _cancel(self._orders.get_nowait().future)
        for seat in self._seats:
            seat.leave()
            self._orders.put(_Order(AT_ONCE, next(self._turns), None))
        for thread in self._threads:
            thread.join()
        self._site.close()

    def _serve(self, seat: _Seat) -> None:
        seat.wait()
        while (order := self._orders.get()).task:
            if order.num_deaths or order.future.set_running_or_notify_cancel():
                self._do(order.task, order, seat)
            seat.wait()
        seat.close()

    def _do(self, task: Task[Any], order: _Order, seat: _Seat) -> None:
        try:
            order.future.set_result(seat.do(task))
        except WorkerDiedError:
            self._again(order)
        except BaseException as error:  # the one who waits for it is to hear of it
            order.future.set_exception(error)

    def _again(self, order: _Order) -> None:
        order.num_deaths += 1
        with self._lock:
            if self._is_closed:
                _cancel(order.future)
            elif order.num_deaths < MAX_DEATHS:
                self._orders.put(order)
            else:
                order.future.set_exception(_too_many_deaths("at the same work"))


def _cancel(future: Future[Any]) -> None:
    """Also of what was begun, by a worker that died."""
    if not future.cancel():
        future.set_exception(CancelledError(GONE_HOME))


def _nothing(trainer: ChunkedTrainer) -> None:
    """Whether there is a trainer is all that is asked."""
