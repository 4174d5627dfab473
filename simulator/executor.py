"""Training on several workers at once, with the same result as on one.

A worker is a process with a trainer of its own, on this machine or another. A job's result depends
on the job and its stack alone, and every worker computes on one thread, so neither the number of
workers, nor who takes which stack, nor that one of them dies can change it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from queue import Empty, PriorityQueue
from threading import Lock, Thread
from typing import Any, Protocol, TypeVar

from safetensors import SafetensorError

from devices.plan import Adapter
from devices.stacks import stacks_of
from devices.trainer import (
    ChunkedTrainer,
    ChunkScore,
    Evaluation,
    HostNames,
    SalienceMetric,
    TrainingError,
    TrainingJob,
    TrainingResult,
    combine,
)
from traces.bandwidth import FloatArray

T = TypeVar("T")
Task = Callable[[ChunkedTrainer], T]
"""What a worker does with its trainer. It travels to the worker, so it is a partial of a function
of a module."""

MAX_DEATHS = 3
"""How many workers a task may take with it before it is given up."""
AT_ONCE, MEANWHILE = 0, 1
"""How urgent a task is: the server waits for it, or goes on."""


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
        self._site = site
        self._worker = site.start()

    def do(self, task: Task[T]) -> T:
        for _ in range(MAX_DEATHS):
            try:
                return self._worker.do(task)
            except WorkerDiedError:
                self._worker.close()
                self._worker = self._site.start()
        raise TrainingError(
            f"a training process must not end before its work is done, but {MAX_DEATHS} did at the "
            "same work: were they killed, or the machine out of memory? Fewer --workers need less"
        )

    def close(self) -> None:
        self._worker.close()


@dataclass(order=True)
class _Order:
    """A task on its way to whoever is free."""

    urgency: int
    turn: int
    task: Task[Any] | None = field(compare=False)  # None: go home
    future: Future[Any] = field(compare=False, default_factory=Future)


class Executor:
    """Does tasks on workers, the urgent ones first, and replaces a worker that dies.

    Raises TrainingError where a worker has no trainer.
    """

    def __init__(self, site: Site, num_workers: int) -> None:
        self._site = site
        self._orders: PriorityQueue[_Order] = PriorityQueue()
        self._turns, self._lock, self._is_closed = count(), Lock(), False
        seats = [_Seat(site) for _ in range(num_workers)]
        try:
            for seat in seats:
                seat.do(_nothing)
        except BaseException:
            for seat in seats:
                seat.close()
            site.close()
            raise
        self._threads = [Thread(target=self._serve, args=(seat,), daemon=True) for seat in seats]
        for thread in self._threads:
            thread.start()

    def submit(self, task: Task[T], urgency: int = AT_ONCE) -> Future[T]:
        """Have it done; among equally urgent tasks in this order."""
        order = _Order(urgency, next(self._turns), task)
        with self._lock:
            if self._is_closed:
                raise CancelledError("the workers have gone home")
            self._orders.put(order)
        return order.future

    def close(self) -> None:
        """End the workers once they are done with what they are at; the rest is cancelled."""
        with self._lock:
            self._is_closed = True
            with suppress(Empty):  # the workers may be quicker
                while True:
                    self._orders.get_nowait().future.cancel()
        for _ in self._threads:
            self._orders.put(_Order(AT_ONCE, next(self._turns), None))
        for thread in self._threads:
            thread.join()
        self._site.close()

    def _serve(self, seat: _Seat) -> None:
        while (order := self._orders.get()).task:
            if order.future.set_running_or_notify_cancel():
                try:
                    order.future.set_result(seat.do(order.task))
                except BaseException as error:  # the one who waits for it is to hear of it
                    order.future.set_exception(error)
        seat.close()


class SharedTrainer:
    """A Trainer whose jobs, and the parts of whose evaluations, workers share."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._num_chunks = executor.submit(_num_chunks).result()
        self._beside = ThreadPoolExecutor(1)

    @property
    def host_names(self) -> HostNames:
        return self.have_done(_host_names)

    def have_done(self, task: Task[T]) -> T:
        """What a worker makes of it."""
        return self._executor.submit(task).result()

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        # The longest first, so that no worker starts a long pass when the others are done.
        stacks = sorted(stacks_of(jobs), key=lambda k: -len(k) * jobs[k[0]].plan.depth)
        tasks = [partial(_train, jobs=[jobs[k] for k in members]) for members in stacks]
        futures = [self._executor.submit(task) for task in tasks]
        results: dict[int, TrainingResult] = {}
        for members, future in zip(stacks, futures, strict=True):
            results |= zip(members, future.result(), strict=True)
        return [results[k] for k in range(len(jobs))]

    def evaluate(self, adapter: Adapter) -> Evaluation:
        tasks = [partial(_score, adapter=adapter, chunk=k) for k in range(self._num_chunks)]
        futures = [self._executor.submit(task, MEANWHILE) for task in tasks]
        return combine(score for future in futures for score in future.result())

    def begin(
        self, evaluate: Callable[[Adapter], Evaluation], adapter: Adapter
    ) -> Future[Evaluation]:
        """Evaluate while the workers train: they take it up when they would be idle."""
        return self._beside.submit(evaluate, adapter)

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        return self.have_done(partial(_block_salience, metric=metric))

    def close(self) -> None:
        """End the workers."""
        self._beside.shutdown(wait=False, cancel_futures=True)
        self._executor.close()


def _nothing(trainer: ChunkedTrainer) -> None:
    """Whether there is a trainer is all that is asked."""


def _train(trainer: ChunkedTrainer, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
    return trainer.train(jobs)


def _host_names(trainer: ChunkedTrainer) -> HostNames:
    return trainer.host_names


def _num_chunks(trainer: ChunkedTrainer) -> int:
    return trainer.num_chunks


def _score(trainer: ChunkedTrainer, adapter: Adapter, chunk: int) -> list[ChunkScore]:
    return trainer.score(adapter, [chunk])


def _block_salience(trainer: ChunkedTrainer, metric: SalienceMetric) -> FloatArray:
    return trainer.block_salience(metric)
