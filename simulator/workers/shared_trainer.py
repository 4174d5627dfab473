"""A trainer whose work workers share."""

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
    SalienceMetric,
    TrainingJob,
    TrainingResult,
)
from simulator.workers.executor import MEANWHILE, Executor, T, Task
from traces.arrays import FloatArray


class SharedTrainer:
    """A Trainer whose jobs, and the parts of whose evaluations, workers share.

    ``combine`` makes an evaluation of the scores of all its parts.
    """

    def __init__(
        self, executor: Executor, combine: Callable[[Iterable[ChunkScore]], Evaluation]
    ) -> None:
        self._executor, self._combine = executor, combine
        self._num_chunks = self.have_done(_num_chunks)
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
        return self._combine(score for future in futures for score in future.result())

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
