"""Sorts a text, or a pair of texts, into classes: the task of labels and accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from devices.datasets.dataset import SPLITS, Split, TextDataset
from devices.models.heads import Head, text_head
from devices.tasks.task import Batch, Encoded, Metric, Predictor, Tokenize, totals
from devices.tasks.texts import encode_texts
from devices.vocabulary.trainer import ChunkScore, Evaluation
from traces.arrays import IntArray

if TYPE_CHECKING:
    from torch import Tensor

MAX_NAMED = 20
"""The number of labels that a message names."""
ACCURACY = Metric("accuracy", "share", "higher")
LOSS = Metric("loss", "nats", "lower")
MACRO_F1 = Metric("macro_f1", "share", "higher")
MATTHEWS = Metric("matthews", "", "higher")


@dataclass(frozen=True, eq=False)
class Classification:
    """A classification gives each example one of the labels that the training examples have.

    An example is a text, or a pair of texts where the data has a column ``pair``. Labels are
    indices into ``class_names``, which are sorted. The head is a layer of one output a class,
    trained with cross-entropy.
    """

    kind: ClassVar[str] = "classification"
    columns: ClassVar[tuple[str, ...]] = ("text", "label")
    optional: ClassVar[tuple[str, ...]] = ("pair",)
    metrics: ClassVar[tuple[Metric, ...]] = (ACCURACY, LOSS, MACRO_F1, MATTHEWS)

    data: TextDataset
    class_names: tuple[str, ...]
    labels: Mapping[Split, IntArray]  # (n,): the class of each example, by split
    label_smoothing: float = 0.0  # share of each target that is spread evenly over all classes

    @classmethod
    def of(cls, data: TextDataset) -> Classification:
        """Read the labels of a data set.

        Raises ValueError for fewer than two labels in the training examples, or a test label that
        is none of them.
        """
        names = tuple(sorted(set(data["train"]["label"])))
        if len(names) < 2:
            raise data["train"].error(None, f"there must be at least 2 labels, got only {names[0]}")
        index = {label: i for i, label in enumerate(names)}
        for place, label in enumerate(data["test"]["label"]):
            if label not in index:
                shown = ", ".join(names[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")
                raise data["test"].error(
                    place, f"label must be one of the training labels {shown}, got {label!r}"
                )
        labels: dict[Split, IntArray] = {
            split: np.array([index[label] for label in data[split]["label"]], dtype=np.int64)
            for split in SPLITS
        }
        return cls(data, names, labels)

    @property
    def num_classes(self) -> int:
        """Return the number of classes among the training examples."""
        return len(self.class_names)

    @property
    def majority_share(self) -> float:
        """Return the test accuracy, in [0, 1], of the best constant answer."""
        counts = np.bincount(self.labels["test"])
        return float(counts.max() / counts.sum())

    def head(self, config: Mapping[str, Any]) -> Head:
        return text_head(self.num_classes)

    def encode(self, split: Split, tokenize: Tokenize) -> Encoded:
        return encode_texts(self.data[split], tokenize, self.labels[split])

    def losses(self, logits: Tensor, batch: Batch, *, num_jobs: int = 1) -> tuple[Tensor, Tensor]:
        from torch.nn import functional

        each = functional.cross_entropy(logits.detach(), batch.targets, reduction="none")
        # For one job torch's own mean is taken, which rounds differently from the mean over a row.
        if num_jobs == 1:
            return functional.cross_entropy(
                logits, batch.targets, label_smoothing=self.label_smoothing
            )[None], each
        apart = functional.cross_entropy(
            logits, batch.targets, reduction="none", label_smoothing=self.label_smoothing
        )
        return apart.view(num_jobs, -1).mean(1), each

    def score(self, model: Predictor, batch: Batch) -> ChunkScore:
        import torch
        from torch.nn import functional

        logits = model.logits(batch)
        loss = functional.cross_entropy(logits, batch.targets, reduction="sum")
        answers = logits.argmax(dim=1)
        counts, correct, given = (
            torch.bincount(classes, minlength=self.num_classes).tolist()
            for classes in (batch.targets, answers[answers == batch.targets], answers)
        )
        by_class = tuple(zip(counts, correct, given, strict=True))
        return ChunkScore((len(batch.targets), sum(correct), loss.item()), by_class)

    def evaluation(self, scores: Iterable[ChunkScore]) -> Evaluation:
        scores = list(scores)
        num_examples, num_correct, loss_sum = totals(scores)
        counts, correct, given = np.array([score.by_group for score in scores]).sum(axis=0).T
        with np.errstate(invalid="ignore"):
            shares = correct / counts
        values = {
            ACCURACY.name: num_correct / num_examples,
            LOSS.name: loss_sum / num_examples,
            MACRO_F1.name: macro_f1(counts, correct, given),
            MATTHEWS.name: matthews(counts, correct, given),
        }
        return Evaluation(values, tuple(shares.tolist()))

    def groups(self, split: Split) -> IntArray:
        return self.labels[split]

    def facts(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes, "majority_share": self.majority_share}


def macro_f1(counts: IntArray, correct: IntArray, given: IntArray) -> float:
    """Return the mean over classes of the harmonic mean of precision and recall.

    Of each class there are ``counts`` examples; it was answered ``given`` times, ``correct`` of
    them rightly. A class that is neither there nor answered does not count.
    """
    is_known = counts + given > 0
    return float(np.mean(2 * correct[is_known] / (counts + given)[is_known]))


def matthews(counts: IntArray, correct: IntArray, given: IntArray) -> float:
    """Return the Matthews correlation of answers and labels, in [-1, 1], for any number of classes.

    With s examples, c of them right, and t_k labels and p_k answers of class k it is
    (c s - sum t_k p_k) / sqrt((s^2 - sum t_k^2) (s^2 - sum p_k^2)), R_K of Gorodkin 2004,
    "Comparing two K-category assignments by a K-category correlation coefficient". 0 where all
    labels or all answers are of one class.
    """
    total = int(counts.sum())
    of_labels, of_answers = (total**2 - int(each @ each) for each in (counts, given))
    if not of_labels or not of_answers:
        return 0.0
    covariance = int(correct.sum()) * total - int(counts @ given)
    return covariance / math.sqrt(of_labels) / math.sqrt(of_answers)
