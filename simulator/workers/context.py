"""Names everything beside its arguments that a result of training or evaluation depends on.

What does not reach a result is not named here, so that a run which differs in nothing else finds
what earlier ones kept.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from devices.datasets.dataset import Examples
from devices.tasks.task import Task
from devices.vocabulary.trainer import HostNames
from simulator.config.schema import RunConfig
from simulator.log.provenance import versions
from simulator.world.build import World
from traces.canonical import canonical

PACKAGES = ("fedclock", "numpy", "torch", "transformers", "tokenizers", "peft")
"""The libraries whose version can move the digits of a result."""
TOKENIZERS = ("transformers", "tokenizers")
"""The libraries whose version can change tokens."""
ELSEWHERE = (
    *("schedule", "rslora", "stack"),  # part of each job as its rate share, adapter and stack
    "when_diverged",  # decides only what the server does with a result
    *("dtype", "compute"),  # part of the context as the names of the host
    "momentum",  # part of the context as the optimizer's momentum
)
"""Options of training that are left out of its context."""


class Context(NamedTuple):
    """The context of a run names what the results of each call to its trainer depend on."""

    training: str
    evaluation: str
    salience: str

    def with_text(self, text: str) -> Context:
        """Return the context of results that also depend on what this text says."""
        return Context(*(part + text for part in self))


def context_of(config: RunConfig, world: World, host: HostNames | None) -> Context:
    """Return the context of a run that trains on such a host."""
    settings, task = config.training, world.task
    assert settings != "none"
    common: dict[str, Any] = {
        **_texts(config, world),
        "targets": config.task.targets,
        "attention": settings.attention,
        "host": host,
        "versions": versions(PACKAGES),
    }
    recipe = {name: value for name, value in vars(settings).items() if name not in ELSEWHERE}
    tested = {
        "test": _sha256(task.data.test, _columns(task)),
        "examples": min(config.evaluation.examples, len(task.data.test)),
        "answer_tokens": config.task.answer_tokens,
    }
    return Context(
        training=canonical({**common, **recipe, "sgd_momentum": settings.sgd_momentum}),
        evaluation=canonical({**common, **tested}),
        salience=canonical({**common, "label_smoothing": settings.label_smoothing}),
    )


def tokens_key(config: RunConfig, world: World) -> str:
    """Return, as text, everything that the tokens of the examples follow from, but for the code."""
    test = _sha256(world.task.data.test, _columns(world.task))
    tested = {"test": test} | ({"own tests": True} if config.evaluation.own_share else {})
    return canonical({**_texts(config, world), **tested, "versions": versions(TOKENIZERS)})


def _texts(config: RunConfig, world: World) -> dict[str, Any]:
    """Return what the training examples and their tokens follow from."""
    task = world.task
    return {
        "model": world.source.files_sha256,
        "task": task.kind,
        # The training set also decides the numbers of the classes of test examples.
        "train": _sha256(task.data.train, _columns(task)),
        "max_length": config.task.max_length,
        "template": config.task.template,
        # The default is left out, so that results from before this option are still found.
        **({"packing": config.task.packing} if config.task.packing != "by-document" else {}),
    }


@lru_cache(maxsize=4)
def _sha256(examples: Examples, columns: tuple[str, ...]) -> str:
    return examples.sha256(columns)


def _columns(task: Task) -> tuple[str, ...]:
    """Return the columns that an example of the task is made of, and no others that were read."""
    there = task.data.train.columns
    return tuple(name for name in (*task.columns, *task.optional) if name in there)
