"""Lists every task by the kind that a config names it by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

from devices.datasets.dataset import TextDataset, load_dataset
from devices.tasks.causal_lm import CausalLM
from devices.tasks.classification import Classification
from devices.tasks.task import Metric, Task


class TaskKind(NamedTuple):
    """A kind of task: what it reads of each example, how it is made of them, and its metrics."""

    columns: tuple[str, ...]
    metrics: tuple[Metric, ...]
    of: Callable[[TextDataset], Task]


TASKS: Mapping[str, TaskKind] = MappingProxyType(
    {
        task.kind: TaskKind(task.columns, task.metrics, task.of)
        for task in (Classification, CausalLM)
    }
)


def load_task(
    kind: str,
    data: str,
    *,
    named: Mapping[str, str] | None = None,
    beside: Sequence[str] = (),
) -> Task:
    """Load a data set by its name or directory, and make a task of this kind of it.

    ``named`` says what the files call a column, and ``beside`` are the columns that are read
    besides those of the task, such as the client that an example is of. Raises ValueError where the
    data cannot be read, or is not what the task needs.
    """
    task = TASKS[kind]
    columns = tuple(dict.fromkeys((*task.columns, *beside)))
    return task.of(load_dataset(data, columns, named or None))


def smoothed(task: Task, share: float) -> Task:
    """Return the task with this share of each target spread evenly over all there are.

    Raises ValueError where the targets of the task cannot be smoothed, unless the share is zero.
    """
    if not share:
        return task
    if not hasattr(task, "label_smoothing"):
        raise ValueError(f"label_smoothing must be 0 for {task.kind}, got {share:g}")
    with_options: Any = task  # a dataclass that has the field
    smooth: Task = replace(with_options, label_smoothing=share)
    return smooth
