"""A model is scored on examples of the training set as it is on the test set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from devices.datasets.dataset import Examples, TextDataset
from devices.tasks.causal_lm import CausalLM
from devices.tasks.choice import Choice
from devices.tasks.classification import Classification
from devices.tasks.registry import scored_on_training_set
from devices.tasks.task import Task
from devices.vocabulary.trainer import OwnTest
from tests.devices.training.test_choice import make_choices
from tests.devices.training.tiny_task import (
    make_config,
    make_dataset,
    make_job,
    make_trainer,
    save_model,
)

HELD = np.array([0, 3, 4, 11, 30, 31, 32, 57])


def with_test_set(data: TextDataset, examples: list[int]) -> TextDataset:
    """Return the data set with these of its training examples as its test set."""
    columns = {name: tuple(data.train[name][k] for k in examples) for name in data.train.columns}
    return replace(data, test=Examples(columns))


@pytest.mark.parametrize(
    ("data", "make"),
    [
        (make_dataset().data, Classification.of),
        (make_dataset().data, CausalLM.of),
        (make_dataset().data, partial(CausalLM, packing="packed")),
        (make_choices(), Choice.of),
    ],
    ids=["classification", "causal-lm", "packed", "choice"],
)
def test_own_examples_score_as_the_same_examples_held_out(
    data: TextDataset, make: Callable[[TextDataset], Task], tmp_path: Path
) -> None:
    task = scored_on_training_set(make(data))
    config = make_config(max_length=16, eval_examples=len(HELD), eval_batch_size=3)
    if task.kind != "classification":
        directory = save_model(tmp_path / "llama", "llama", language=True)
        config = replace(config, model=str(directory), targets=("q_proj", "v_proj"))
    trainer = make_trainer(config, task)
    start = trainer.spec.initial_adapter(4, 8.0, np.random.default_rng(0))
    (result,) = trainer.train([make_job(trainer, adapter=start, steps=3)])
    own = trainer.evaluate_own([OwnTest(start, HELD[:2]), OwnTest(result.adapter, HELD)])
    held_out = make_trainer(config, make(with_test_set(data, HELD.tolist())))
    assert own[1].values == pytest.approx(held_out.evaluate(result.adapter).values, rel=1e-6)
    assert own[0].values["loss"] != own[1].values["loss"]
