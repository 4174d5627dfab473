"""Lists every task by the kind that a config names it by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from devices.datasets.dataset import TextDataset
from devices.tasks.causal_lm import CausalLM
from devices.tasks.classification import Classification
from devices.tasks.task import Task

TASKS: Mapping[str, Callable[[TextDataset], Task]] = MappingProxyType(
    {
        Classification.kind: Classification.of,
        CausalLM.kind: CausalLM.of,
    }
)
"""Functions that make the task of a data set."""
