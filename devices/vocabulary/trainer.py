"""Defines what the engine needs of training, and what a trainer guarantees.

Training is real, but takes no simulated time: seconds, bytes and joules follow from the plan alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

from devices.vocabulary.plan import Adapter, Broadcast, TrainingPlan
from traces.arrays import FloatArray, IntArray

SalienceMetric = Literal["wanda", "taylor", "influence", "outerr"]


class TrainingError(Exception):
    """Training that cannot go on. The message is all that a user needs to see."""


@dataclass(frozen=True, eq=False)
class TrainingJob:
    """One device's local training: all that its result depends on.

    With ``stack`` above 1 its last digits depend on the jobs that it is stacked with, too.
    """

    plan: TrainingPlan
    broadcast: Broadcast
    examples: IntArray  # (n,): the device's shard, as indices into the training set
    seed: int
    stack: int = 1  # jobs that may be trained in one pass; see devices/vocabulary/stacks.py


class TrainingResult(NamedTuple):
    """The adapter after the plan's steps, before it is encoded; terms not trained are untouched."""

    adapter: Adapter
    train_loss: float  # mean over the steps
    squared_loss: float = math.nan  # mean of the squared losses of the examples; NaN: not measured
    diverged: str = ""  # how training went to infinity, where it did


class Evaluation(NamedTuple):
    """The score of the global model on the held-out examples."""

    accuracy: float  # share of correct answers, in [0, 1]; NaN: not measured
    loss: float  # mean cross-entropy, in nats; NaN: not measured
    by_class: tuple[float, ...] = ()  # accuracy on each class; NaN where none of it is held out


class ChunkScore(NamedTuple):
    """The counts and the loss of one chunk of the held-out examples, to be added to others."""

    num_examples: int
    num_correct: int
    loss_sum: float
    by_class: tuple[tuple[int, int], ...] = ()  # examples and correct ones of each class


def combine(scores: Iterable[ChunkScore]) -> Evaluation:
    """Put chunks' scores together: the same Evaluation, whoever scored them, in whatever order."""
    counts, correct, losses, by_class = zip(*scores, strict=True)
    classes = (map(sum, zip(*of_class, strict=True)) for of_class in zip(*by_class, strict=True))
    shares = tuple(right / num if num else math.nan for num, right in classes)
    return Evaluation(sum(correct) / sum(counts), math.fsum(losses) / sum(counts), shares)


class HostNames(NamedTuple):
    """The device and the number format of a trainer, which its results depend on."""

    compute: Literal["cpu", "cuda"]
    dtype: Literal["bf16", "fp32"]  # of matrix products


class Trainer(Protocol):
    """Trains jobs and tests models, in no simulated time.

    A result is a function of the job, the model, the data and the settings of training. It does not
    depend on the number of workers, on the order of the calls, or on what was trained before.
    """

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        """Train each job from its broadcast; return one result a job, in the order of ``jobs``.

        The adapters have the shapes of the broadcast's, and their frozen and truncated terms are
        as they were broadcast. Training that goes to infinity is no error: its result says so in
        ``diverged``. Raises TrainingError where no worker can train, and ValueError for a plan or
        an adapter that does not fit the model.
        """
        ...

    def evaluate(self, adapter: Adapter) -> Evaluation:
        """Test the model with this adapter on the held-out examples, the same ones every time.

        All blocks are present, and their weights in fp32. Raises as ``train`` does.
        """
        ...

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        """Measure how much each block matters to the base model: (L,), larger matters more.

        Values are finite and at least 0; their unit is the metric's own.
        """
        ...


class ChunkedTrainer(Trainer, Protocol):
    """A trainer whose evaluation several of its kind can share, chunk by chunk.

    ``combine`` of the scores of all chunks is what ``evaluate`` returns.
    """

    @property
    def host_names(self) -> HostNames:
        """The device and number format that it computes with."""
        ...

    @property
    def num_chunks(self) -> int:
        """The number of chunks of the held-out examples, at least 1; they are numbered from 0."""
        ...

    def score(self, adapter: Adapter, chunks: Iterable[int]) -> list[ChunkScore]:
        """Score each of these chunks, in their order; the result follows from adapter and chunk."""
        ...


@dataclass(frozen=True)
class NullTrainer:
    """A trainer that trains nothing: adapters come back as they went out, and no score is known."""

    num_blocks: int

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        return [TrainingResult(job.broadcast.adapter, float("nan")) for job in jobs]

    def evaluate(self, adapter: Adapter) -> Evaluation:
        return Evaluation(float("nan"), float("nan"))

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        return np.ones(self.num_blocks)
