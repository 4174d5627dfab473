"""Lists every task by the kind that a config names it by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

from devices.datasets.dataset import CLIENT, SPLITS, WHOLE, Edition, TextDataset, load_dataset
from devices.tasks.causal_lm import CausalLM
from devices.tasks.choice import Choice
from devices.tasks.classification import Classification
from devices.tasks.instructions import Instructions
from devices.tasks.regression import Regression
from devices.tasks.task import Metric, Task


class TaskKind(NamedTuple):
    """A task kind says what a task reads of each example, how it is made, and its metrics."""

    columns: tuple[str, ...]
    optional: tuple[str, ...]
    metrics: tuple[Metric, ...]
    of: Callable[[TextDataset], Task]


TASKS: Mapping[str, TaskKind] = MappingProxyType(
    {
        task.kind: TaskKind(task.columns, task.optional, task.metrics, task.of)
        for task in (Classification, Regression, CausalLM, Instructions, Choice)
    }
)
METRICS: Mapping[str, Metric] = MappingProxyType(
    {metric.name: metric for task in TASKS.values() for metric in task.metrics}
)
"""Every metric of a task, by its column in rounds.parquet; what differs by task is its unit."""
UNNAMED_METRIC = Classification.metrics[0]
"""The metric that judges a run whose log names no task, as logs of the first versions."""
COLUMNS = tuple(
    dict.fromkeys(name for task in TASKS.values() for name in (*task.columns, *task.optional))
)
"""Every column that some task reads."""


def load_task(
    kind: str,
    data: str,
    *,
    named: Mapping[str, str] | None = None,
    beside: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    edition: Edition = WHOLE,
) -> Task:
    """Load a data set by its name or directory, and make a task of this kind of it.

    ``named`` says what the files call a column; an optional one of the task is read where it is
    named. ``beside`` are the columns that are read besides those of the task, such as the client
    that an example is of, ``options`` are fields of the task with values of their own, and
    ``edition`` says which part of the data is read. Raises ValueError where the data cannot be
    read, or is not what the task needs, and for a field that the task does not have.
    """
    task = TASKS[kind]
    columns = tuple(dict.fromkeys((*task.columns, *beside)))
    loaded = load_dataset(
        data,
        columns,
        named or None,
        optional=task.optional,
        nameable=(*COLUMNS, CLIENT),
        edition=edition,
    )
    return with_options(task.of(loaded), options or {})


def smoothed(task: Task, share: float) -> Task:
    """Return the task with this share of each target spread evenly over all there are.

    Raises ValueError where the targets of the task cannot be smoothed, unless the share is zero.
    """
    return with_options(task, {"label_smoothing": share} if share else {})


def scored_on_training_set(task: Task) -> Task:
    """Return the task so that models can be scored on its training examples too."""
    return with_options(task, {"scored": SPLITS} if isinstance(task, Choice) else {})


def with_options(task: Task, options: Mapping[str, Any]) -> Task:
    """Return the task with other values of these fields.

    Raises ValueError for a field that the task does not have.
    """
    for name, value in options.items():
        if not hasattr(task, name):
            raise ValueError(f"{name} must be left out for {task.kind}, got {value!r:.60}")
    with_fields: Any = task  # every task is a dataclass, which its protocol cannot say
    changed: Task = replace(with_fields, **options)
    return changed
