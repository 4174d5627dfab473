"""Training on several processes, with the same result as on one."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from safetensors import SafetensorError

from devices.plan import Adapter
from devices.trainer import (
    ChunkedTrainer,
    ChunkScore,
    Evaluation,
    SalienceMetric,
    TrainingError,
    TrainingJob,
    TrainingResult,
    combine,
)
from traces.bandwidth import FloatArray

_trainer: ChunkedTrainer | None = None  # the worker process's own
_why_not: str | None = None  # it has none


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class PooledTrainer:
    """A Trainer whose jobs run on worker processes, each with a trainer of its own.

    A job's result depends on the job alone and every worker computes on one thread, so neither the
    number of workers nor who takes which job can change it.
    """

    def __init__(self, make_trainer: Callable[[], ChunkedTrainer], workers: int) -> None:
        self._workers = workers
        self._pool = ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(make_trainer,),
        )
        # Workers inherit that Ctrl-C is ignored: it is the parent's to answer. Each of these jobs
        # starts a worker, since none is idle yet.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            started = [self._pool.submit(_failure) for _ in range(workers)]
        finally:
            signal.signal(signal.SIGINT, handler)
        with _workers_that_may_die():
            failures = [future.result() for future in started]
        for failure in filter(None, failures):
            self.close()
            raise TrainingError(failure)

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        # The longest first, so that no worker starts a long job when the others are done.
        order = sorted(range(len(jobs)), key=lambda k: -jobs[k].plan.depth)
        with _workers_that_may_die():
            futures = {k: self._pool.submit(_train, jobs[k]) for k in order}
            return [futures[k].result() for k in range(len(jobs))]

    def evaluate(self, adapter: Adapter) -> Evaluation:
        # Shared out by turns, since chunks grow with the length of their texts.
        shares = [(adapter, k, self._workers) for k in range(self._workers)]
        with _workers_that_may_die():
            futures = [self._pool.submit(_score, *share) for share in shares]
            return combine(score for future in futures for score in future.result())

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        with _workers_that_may_die():
            return self._pool.submit(_block_salience, metric).result()

    def close(self) -> None:
        """End the workers; what they were doing is lost."""
        self._pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _workers_that_may_die() -> Iterator[None]:
    """Say in words what a dead worker means."""
    try:
        yield
    except BrokenProcessPool:
        raise TrainingError(
            "a training process must not end before its work is done, but one did: was it killed, "
            "or the machine out of memory? Fewer --workers need less"
        ) from None


@contextmanager
def loading() -> Iterator[None]:
    """Say in words why a model cannot be loaded."""
    try:
        yield
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainingError(f"the model cannot be loaded: {first_line}") from None


def _start_worker(make_trainer: Callable[[], ChunkedTrainer]) -> None:
    global _trainer, _why_not
    try:
        with loading():
            _trainer = make_trainer()
    except TrainingError as error:
        _why_not = str(error)


def _failure() -> str | None:
    """Why this worker has no trainer; None where it has one."""
    return _why_not


def _worker_trainer() -> ChunkedTrainer:
    assert _trainer is not None, "a worker starts by making its trainer"
    return _trainer


def _train(job: TrainingJob) -> TrainingResult:
    return _worker_trainer().train([job])[0]


def _score(adapter: Adapter, first: int, step: int) -> list[ChunkScore]:
    trainer = _worker_trainer()
    return trainer.score(adapter, range(first, trainer.num_chunks, step))


def _block_salience(metric: SalienceMetric) -> FloatArray:
    return _worker_trainer().block_salience(metric)
