"""Predicts a number for a text or a pair of texts, such as how alike the two are: regression."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from devices.datasets.dataset import SPLITS, Examples, Split, TextDataset
from devices.models.heads import Head, score_head
from devices.tasks.task import Batch, Encoded, Metric, Predictor, Tokenize
from devices.tasks.texts import encode_texts
from devices.vocabulary.trainer import ChunkScore, Evaluation
from traces.arrays import Float32Array, FloatArray, IntArray

if TYPE_CHECKING:
    from torch import Tensor

PEARSON = Metric("pearson", "", "higher")
SPEARMAN = Metric("spearman", "", "higher")
SQUARED_ERROR = Metric("loss", "", "lower")


@dataclass(frozen=True, eq=False)
class Regression:
    """A regression predicts the score of each example: one output, trained with squared error.

    An example is a text, or a pair of texts where the data has a column ``pair``. Scores are
    learned as they stand; loss is the mean squared error in their unit squared.
    """

    kind: ClassVar[str] = "regression"
    columns: ClassVar[tuple[str, ...]] = ("text", "score")
    optional: ClassVar[tuple[str, ...]] = ("pair",)
    metrics: ClassVar[tuple[Metric, ...]] = (PEARSON, SPEARMAN, SQUARED_ERROR)

    data: TextDataset
    scores: Mapping[Split, Float32Array]  # (n,): the score of each example, by split

    @classmethod
    def of(cls, data: TextDataset) -> Regression:
        """Read the scores of a data set.

        Raises ValueError for a score that is no number, or test examples that all have one score.
        """
        scores: dict[Split, Float32Array] = {split: _scores(data[split]) for split in SPLITS}
        if len(np.unique(scores["test"])) < 2:
            raise data["test"].error(
                None,
                "there must be at least 2 different scores among the test examples, since models "
                f"are judged by correlation, got only {scores['test'][0]:g}",
            )
        return cls(data, scores)

    def head(self, config: Mapping[str, Any]) -> Head:
        return score_head()

    def encode(self, split: Split, tokenize: Tokenize) -> Encoded:
        return encode_texts(self.data[split], tokenize, self.scores[split])

    def losses(self, logits: Tensor, batch: Batch, *, num_jobs: int = 1) -> tuple[Tensor, Tensor]:
        return squared_errors(logits, batch.targets, num_jobs=num_jobs)

    def score(self, model: Predictor, batch: Batch) -> ChunkScore:
        columns = (model.logits(batch)[:, 0].double().tolist(), batch.targets.double().tolist())
        return ChunkScore(rows=tuple(zip(*columns, strict=True)))

    def evaluation(self, scores: Iterable[ChunkScore]) -> Evaluation:
        rows = np.array(sorted(row for score in scores for row in score.rows))
        predicted, wanted = rows.T
        values = {
            PEARSON.name: correlation(predicted, wanted),
            SPEARMAN.name: correlation(_ranks(predicted), _ranks(wanted)),
            SQUARED_ERROR.name: float(np.mean((predicted - wanted) ** 2)),
        }
        return Evaluation(values)

    def groups(self, split: Split) -> IntArray | None:
        return None

    def facts(self) -> dict[str, Any]:
        tested = self.scores["test"].astype(np.float64)
        return {"constant_loss": float(tested.var())}  # the loss of the best constant answer


def squared_errors(logits: Tensor, targets: Tensor, *, num_jobs: int = 1) -> tuple[Tensor, Tensor]:
    """Return the mean squared error of each job, (jobs,), and that of each example, (B,).

    The examples of a job stand next to each other.
    """
    each = (logits[:, 0] - targets).square()  # (B, 1), (B,) -> (B,)
    return each.view(num_jobs, -1).mean(1), each.detach()


def correlation(one: FloatArray, other: FloatArray) -> float:
    """Return Pearson's correlation of two columns, in [-1, 1]; 0 where one of them is constant.

    NaN where a number is not finite.
    """
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return math.nan
    a, b = one - one.mean(), other - other.mean()
    norms = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return max(-1.0, min(1.0, float(a @ b) / norms)) if norms else 0.0


def _ranks(values: FloatArray) -> FloatArray:
    """Return the rank of each value from 1 up, equal values sharing the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: FloatArray = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


def _scores(examples: Examples) -> Float32Array:
    found = np.empty(len(examples), dtype=np.float32)
    for place, text in enumerate(examples["score"]):
        try:
            with np.errstate(over="ignore"):
                found[place] = float(text)
        except ValueError:
            found[place] = math.nan
        if not math.isfinite(found[place]):
            raise examples.error(place, f"score must be a number below 3e38, got {text!r:.60}")
    return found
