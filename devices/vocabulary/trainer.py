"""Defines what the engine needs of a trainer, which takes no simulated time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

from devices.vocabulary.plan import Adapter, Broadcast, TrainingPlan
from traces.arrays import FloatArray, IntArray

SalienceMetric = Literal["wanda", "taylor", "influence", "outerr"]


class TrainingError(Exception):
    """This error ends training; the message tells the user why, and what to do."""


@dataclass(frozen=True, eq=False)
class TrainingJob:
    """A training job is one device's local training.

    Its result is a function of these fields and nothing else; only with ``stack`` above 1 do its
    last digits also depend on the jobs that it is stacked with (``devices/vocabulary/stacks.py``).
    """

    plan: TrainingPlan
    broadcast: Broadcast
    examples: IntArray  # (n,): the device's shard, as indices into the training set
    seed: int
    stack: int = 1  # the most jobs that may be trained in one pass
    rate_share: float = 1.0  # share of the configured learning rate, from the schedule


class TrainingResult(NamedTuple):
    """A training result is the adapter after a plan's local steps, before it is uploaded.

    Terms that were not trained have the values of the broadcast.
    """

    adapter: Adapter
    train_loss: float  # mean over the steps
    squared_loss: float = math.nan  # mean of the examples' squared losses; NaN if not measured
    diverged: str = ""  # how a loss or weight became infinite; empty if none did


class Evaluation(NamedTuple):
    """An evaluation says how well the global model does on the held-out examples."""

    values: Mapping[str, float]  # one for each metric of the task, in their order
    by_group: tuple[float, ...] = ()  # the first metric on each group; NaN without test examples


class ChunkScore(NamedTuple):
    """A chunk score is what one chunk of the held-out examples adds to an evaluation.

    What the sums are is the task's to say, which also makes an evaluation of all of them.
    """

    sums: tuple[float, ...] = ()
    by_group: tuple[tuple[int, ...], ...] = ()  # counts of each group
    rows: tuple[tuple[float, ...], ...] = ()  # numbers of each example, for metrics without sums


class OwnTest(NamedTuple):
    """An own test asks how well a device's model does on the examples that the device kept."""

    adapter: Adapter
    examples: IntArray  # (n,): indices into the training set; at least one


class HostNames(NamedTuple):
    """Host names say which hardware and number format a trainer computes with."""

    compute: Literal["cpu", "cuda"]
    dtype: Literal["bf16", "fp32"]  # the type of matrix products


class Trainer(Protocol):
    """A trainer does the real training and evaluation of a run.

    Its results depend on its arguments alone, not on the order of calls or the number of workers.
    """

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        """Return the result of each job, in the order of the jobs.

        Adapters have the shapes of the broadcast's. Training that goes to infinity is no error: the
        result says so in ``diverged``. Raises TrainingError where training cannot go on, and
        ValueError for a plan or an adapter that does not fit the model.
        """
        ...

    def evaluate(self, adapter: Adapter) -> Evaluation:
        """Return the task's metrics of the global model on the held-out examples.

        They are the same examples every time. All blocks are present, their weights in fp32.
        Raises as ``train`` does.
        """
        ...

    def evaluate_own(self, tests: Sequence[OwnTest]) -> list[Evaluation]:
        """Return the task's metrics of each model on examples of the training set.

        The models are tested as the global one is. Raises as ``train`` does.
        """
        ...

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        """Return (L,): how much each block matters to the pretrained model; larger is more.

        Values are finite; their unit is the metric's own.
        """
        ...

    def block_fisher(self, adapter: Adapter) -> FloatArray:
        """Return (L,): the diagonal Fisher information of an adapter, on texts of the server.

        The mean over texts of the squared gradients of their losses, as the sum over each block's
        factors of the norms of these means.
        """
        ...


class ChunkedTrainer(Trainer, Protocol):
    """A chunked trainer can evaluate a part of the held-out examples.

    Several of them share one evaluation, which the task makes of their scores.
    """

    @property
    def host_names(self) -> HostNames:
        """Return the hardware and number format that it computes with."""
        ...

    @property
    def num_chunks(self) -> int:
        """Return the number of chunks that the held-out examples are divided into."""
        ...

    def score(self, adapter: Adapter, chunks: Iterable[int]) -> list[ChunkScore]:
        """Return the score of each of these chunks, numbered from 0, in the order given."""
        ...


@dataclass(frozen=True)
class NullTrainer:
    """A null trainer serves runs of timing alone: it returns adapters as they were broadcast.

    Losses are NaN, nothing is known of its models, and every block is as salient as another.
    """

    num_blocks: int

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        return [TrainingResult(job.broadcast.adapter, float("nan")) for job in jobs]

    def evaluate(self, adapter: Adapter) -> Evaluation:
        return Evaluation({})

    def evaluate_own(self, tests: Sequence[OwnTest]) -> list[Evaluation]:
        return [Evaluation({}) for _ in tests]

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        return np.ones(self.num_blocks)

    def block_fisher(self, adapter: Adapter) -> FloatArray:
        return np.ones(self.num_blocks)
