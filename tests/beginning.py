"""A task on the first examples of its data, where all of them would take too long."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from devices.datasets.dataset import SPLITS
from devices.tasks.classification import Classification


def beginning(task: Classification, *, num_train: int, num_test: int) -> Classification:
    """Return the task on so many examples of each split; all classes stay known."""
    counts = {"train": num_train, "test": num_test}
    train, test = (task.data[split].at(np.arange(counts[split])) for split in SPLITS)
    labels = {split: task.labels[split][: counts[split]] for split in SPLITS}
    return replace(task, data=replace(task.data, train=train, test=test), labels=labels)
