"""Training on several processes, with the same result as on one."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

from devices.plan import Adapter
from devices.trainer import Evaluation, SalienceMetric, Trainer, TrainingJob, TrainingResult
from traces.bandwidth import FloatArray

_trainer: Trainer | None = None  # the worker process's own


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class PooledTrainer:
    """A Trainer whose jobs run on worker processes, each with a trainer of its own.

    A job's result depends on the job alone and every worker computes on one thread, so neither the
    number of workers nor who takes which job can change it.
    """

    def __init__(self, make_trainer: Callable[[], Trainer], workers: int) -> None:
        self._pool = ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(make_trainer,),
        )
        # Workers inherit that Ctrl-C is ignored: it is the parent's to answer. The first job starts
        # them all.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._pool.submit(available_cores)
        finally:
            signal.signal(signal.SIGINT, handler)

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        # The longest first, so that no worker starts a long job when the others are done.
        order = sorted(range(len(jobs)), key=lambda k: -jobs[k].plan.depth)
        futures = {k: self._pool.submit(_train, jobs[k]) for k in order}
        return [futures[k].result() for k in range(len(jobs))]

    def evaluate(self, adapter: Adapter) -> Evaluation:
        return self._pool.submit(_evaluate, adapter).result()

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        return self._pool.submit(_block_salience, metric).result()

    def close(self) -> None:
        """End the workers; what they were doing is lost."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(make_trainer: Callable[[], Trainer]) -> None:
    global _trainer
    _trainer = make_trainer()


def _worker_trainer() -> Trainer:
    assert _trainer is not None, "a worker starts by making its trainer"
    return _trainer


def _train(job: TrainingJob) -> TrainingResult:
    return _worker_trainer().train([job])[0]


def _evaluate(adapter: Adapter) -> Evaluation:
    return _worker_trainer().evaluate(adapter)


def _block_salience(metric: SalienceMetric) -> FloatArray:
    return _worker_trainer().block_salience(metric)
