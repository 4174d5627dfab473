"""What the engine needs of training: real gradients in zero simulated seconds."""

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
    """Training cannot go on; the message is all that a user needs to see."""


@dataclass(frozen=True, eq=False)
class TrainingJob:
    """One device's local training.

    The result is a function of these and nothing else; but with ``stack`` above 1 its last digits
    depend on the jobs that it is stacked with.
    """

    plan: TrainingPlan
    broadcast: Broadcast
    examples: IntArray  # (n,): the device's shard, as indices into the training set
    seed: int
    stack: int = 1  # jobs that may be trained in one pass; see devices/vocabulary/stacks.py


class TrainingResult(NamedTuple):
    """The adapter after the plan's steps, before the wire; terms not trained are untouched."""

    adapter: Adapter
    train_loss: float  # mean over the steps
    squared_loss: float = math.nan  # mean of the squared losses of the examples; NaN: not measured
    diverged: str = ""  # how training went to infinity, where it did


class Evaluation(NamedTuple):
    """The global model on the held-out examples."""

    accuracy: float
    loss: float
    by_class: tuple[float, ...] = ()  # accuracy on each class; NaN where none of it is held out


class ChunkScore(NamedTuple):
    """What one chunk of the held-out examples adds to an evaluation."""

    num_examples: int
    num_correct: int
    loss_sum: float
    by_class: tuple[tuple[int, int], ...] = ()  # examples and correct ones of each class


def combine(scores: Iterable[ChunkScore]) -> Evaluation:
    """Accuracy and mean loss over all chunks, whoever scored them and in whatever order."""
    counts, correct, losses, by_class = zip(*scores, strict=True)
    classes = (map(sum, zip(*of_class, strict=True)) for of_class in zip(*by_class, strict=True))
    shares = tuple(right / num if num else math.nan for num, right in classes)
    return Evaluation(sum(correct) / sum(counts), math.fsum(losses) / sum(counts), shares)


class HostNames(NamedTuple):
    """What a trainer computes with, which its results depend on."""

    compute: Literal["cpu", "cuda"]
    dtype: Literal["bf16", "fp32"]  # of matrix products


class Trainer(Protocol):
    """Trains many jobs at once, in any order and on any number of workers, with one result."""

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]: ...

    def evaluate(self, adapter: Adapter) -> Evaluation: ...

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        """(L,): how much each block matters to the model, larger is more."""
        ...


class ChunkedTrainer(Trainer, Protocol):
    """A trainer whose evaluation several of its kind can share: ``combine`` puts it together."""

    @property
    def host_names(self) -> HostNames: ...

    @property
    def num_chunks(self) -> int: ...

    def score(self, adapter: Adapter, chunks: Iterable[int]) -> list[ChunkScore]: ...


@dataclass(frozen=True)
class NullTrainer:
    """Timing only: adapters come back as they went out, and nothing is known of the model."""

    num_blocks: int

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        return [TrainingResult(job.broadcast.adapter, float("nan")) for job in jobs]

    def evaluate(self, adapter: Adapter) -> Evaluation:
        return Evaluation(float("nan"), float("nan"))

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        return np.ones(self.num_blocks)
