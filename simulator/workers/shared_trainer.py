"""Shares the jobs and evaluations of a trainer among the workers of a pool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from devices.vocabulary.plan import Adapter
from devices.vocabulary.stacks import stacks_of
from devices.vocabulary.trainer import (
    ChunkedTrainer,
    ChunkScore,
    Evaluation,
    HostNames,
    OwnTest,
    SalienceMetric,
    TrainingJob,
    TrainingResult,
)
from simulator.workers.pool import BACKGROUND, Pool, T, Task
from traces.arrays import FloatArray


class SharedTrainer:
    """This trainer spreads its jobs, and the chunks of its evaluations, over a pool.

    The state of the pool's workers is a ChunkedTrainer each. ``combine`` makes an evaluation of the
    scores of all chunks.
    """

    def __init__(self, pool: Pool, combine: Callable[[Iterable[ChunkScore]], Evaluation]) -> None:
        self._pool, self._combine = pool, combine
        self._num_chunks = self.have_done(_num_chunks)
        self._beside = ThreadPoolExecutor(1)

    @property
    def host_names(self) -> HostNames:
        return self.have_done(_host_names)

    def have_done(self, task: Task[T]) -> T:
        """Return what the task does on any worker."""
        return self._pool.submit(task).result()

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        # The longest passes are submitted first, so that none begins when the others are done.
        stacks = sorted(stacks_of(jobs), key=lambda k: -len(k) * jobs[k[0]].plan.depth)
        tasks = [partial(_train, jobs=[jobs[k] for k in members]) for members in stacks]
        futures = [self._pool.submit(task) for task in tasks]
        results: dict[int, TrainingResult] = {}
        for members, future in zip(stacks, futures, strict=True):
            results |= zip(members, future.result(), strict=True)
        return [results[k] for k in range(len(jobs))]

    def evaluate(self, adapter: Adapter) -> Evaluation:
        tasks = [partial(_score, adapter=adapter, chunk=k) for k in range(self._num_chunks)]
        futures = [self._pool.submit(task, BACKGROUND) for task in tasks]
        return self._combine(score for future in futures for score in future.result())

    def evaluate_own(self, tests: Sequence[OwnTest]) -> list[Evaluation]:
        futures = [self._pool.submit(partial(_evaluate_own, test=test)) for test in tests]
        return [found for future in futures for found in future.result()]

    def begin(
        self, evaluate: Callable[[Adapter], Evaluation], adapter: Adapter
    ) -> Future[Evaluation]:
        """Begin to evaluate while the workers train: they do it when they would be idle."""
        return self._beside.submit(evaluate, adapter)

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        return self.have_done(partial(_block_salience, metric=metric))

    def block_fisher(self, adapter: Adapter) -> FloatArray:
        return self.have_done(partial(_block_fisher, adapter=adapter))

    def close(self) -> None:
        """End the workers."""
        self._beside.shutdown(wait=False, cancel_futures=True)
        self._pool.close()


def _train(trainer: ChunkedTrainer, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
    return trainer.train(jobs)


def _host_names(trainer: ChunkedTrainer) -> HostNames:
    return trainer.host_names


def _num_chunks(trainer: ChunkedTrainer) -> int:
    return trainer.num_chunks


def _score(trainer: ChunkedTrainer, adapter: Adapter, chunk: int) -> list[ChunkScore]:
    return trainer.score(adapter, [chunk])


def _evaluate_own(trainer: ChunkedTrainer, test: OwnTest) -> list[Evaluation]:
    return trainer.evaluate_own([test])


def _block_salience(trainer: ChunkedTrainer, metric: SalienceMetric) -> FloatArray:
    return trainer.block_salience(metric)


def _block_fisher(trainer: ChunkedTrainer, adapter: Adapter) -> FloatArray:
    return trainer.block_fisher(adapter)
