"""Sorts a text into one of several classes, the task of labels, classes and accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from devices.datasets.dataset import SPLITS, Split, TextDataset
from devices.models.heads import Head, text_head
from devices.tasks.task import Batch, Encoded, Metric, Tokenize, totals
from devices.vocabulary.trainer import ChunkScore, Evaluation
from traces.arrays import IntArray

if TYPE_CHECKING:
    from torch import Tensor

MAX_NAMED = 20
"""Labels that a message names."""
ACCURACY = Metric("accuracy", "share", "higher")
LOSS = Metric("loss", "nats", "lower")


@dataclass(frozen=True, eq=False)
class Classification:
    """A classification gives each text one of the labels that the training examples have.

    Labels are indices into ``class_names``, which are sorted. The head is a layer of one output a
    class, trained with cross-entropy.
    """

    kind: ClassVar[str] = "classification"
    columns: ClassVar[tuple[str, ...]] = ("text", "label")
    metrics: ClassVar[tuple[Metric, ...]] = (ACCURACY, LOSS)

    data: TextDataset
    class_names: tuple[str, ...]
    labels: Mapping[Split, IntArray]  # (n,) of each split
    label_smoothing: float = 0.0  # the share of each target that is spread over all classes

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
        """The number of classes among the training examples."""
        return len(self.class_names)

    @property
    def majority_share(self) -> float:
        """The test accuracy, in [0, 1], of the best constant answer."""
        counts = np.bincount(self.labels["test"])
        return float(counts.max() / counts.sum())

    def subset(self, *, num_train: int, num_test: int) -> Classification:
        """Return the first ``num_train`` and ``num_test`` examples, classes taking turns.

        All classes stay known. Raises ValueError for a number below 1 or above what there is.
        """
        chosen: dict[Split, IntArray] = {
            "train": _in_turn(self.labels["train"], num_train, "num_train"),
            "test": _in_turn(self.labels["test"], num_test, "num_test"),
        }
        train, test = (self.data[split].at(chosen[split]) for split in SPLITS)
        data = replace(self.data, train=train, test=test)
        labels = {split: self.labels[split][chosen[split]] for split in SPLITS}
        return replace(self, data=data, labels=labels)

    def head(self, config: Mapping[str, Any]) -> Head:
        return text_head(self.num_classes)

    def encode(self, split: Split, tokenize: Tokenize) -> Encoded:
        return Encoded(tokenize(self.data[split]["text"]), self.labels[split])

    def losses(self, logits: Tensor, batch: Batch, *, num_jobs: int = 1) -> tuple[Tensor, Tensor]:
        from torch.nn import functional

        each = functional.cross_entropy(logits.detach(), batch.targets, reduction="none")
        if num_jobs == 1:  # rounds otherwise than the mean of what is kept apart
            return functional.cross_entropy(
                logits, batch.targets, label_smoothing=self.label_smoothing
            )[None], each
        apart = functional.cross_entropy(
            logits, batch.targets, reduction="none", label_smoothing=self.label_smoothing
        )
        return apart.view(num_jobs, -1).mean(1), each

    def score(self, logits: Tensor, batch: Batch) -> ChunkScore:
        import torch
        from torch.nn import functional

        loss = functional.cross_entropy(logits, batch.targets, reduction="sum")
        is_correct = logits.argmax(dim=1) == batch.targets
        counts, correct = (
            torch.bincount(targets, minlength=self.num_classes).tolist()
            for targets in (batch.targets, batch.targets[is_correct])
        )
        by_class = tuple(zip(counts, correct, strict=True))
        return ChunkScore((len(batch.targets), sum(correct), loss.item()), by_class)

    def evaluation(self, scores: Iterable[ChunkScore]) -> Evaluation:
        scores = list(scores)
        num_examples, num_correct, loss_sum = totals(scores)
        by_class = np.array([score.by_group for score in scores]).sum(axis=0)  # (classes, 2)
        with np.errstate(invalid="ignore"):
            shares = by_class[:, 1] / by_class[:, 0]
        values = {"accuracy": num_correct / num_examples, "loss": loss_sum / num_examples}
        return Evaluation(values, tuple(shares.tolist()))

    def groups(self, split: Split) -> IntArray:
        return self.labels[split]

    def facts(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes, "majority_share": self.majority_share}


def _in_turn(labels: IntArray, count: int, name: str) -> IntArray:
    """Return the indices of the first ``count`` examples when classes give one each in turn."""
    if not 1 <= count <= len(labels):
        raise ValueError(f"{name} must be in [1, {len(labels)}], got {count}")
    turn = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        turn[labels == label] = np.arange(np.count_nonzero(labels == label))
    return np.lexsort((labels, turn))[:count].astype(np.int64)
