"""The likeliest answer is chosen as transformers alone would choose it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from devices.datasets.dataset import Examples, TextDataset
from devices.tasks.choice import Choice
from devices.tasks.task import IGNORED
from devices.training.trainer import TorchTrainer
from tests.devices.training.plain_loop import assert_has_adapter, train_plainly
from tests.devices.training.test_causal_lm import plain_model
from tests.devices.training.tiny_task import (
    WORDS,
    make_config,
    make_dataset,
    make_job,
    make_trainer,
    save_model,
)
from traces.arrays import IntArray

MAX_LENGTH = 10


def make_choices() -> TextDataset:
    """Return questions for a text's class: prompts often too long, answers of unequal length."""
    words = make_dataset().data
    names = [" ".join(WORDS[12 * k : 12 * k + 1 + k % 2]) for k in range(4)]
    offered = f'["{names[0]}", "{names[1]}", "{names[2]}", "{names[3]}"]'

    def asked(split: Examples) -> Examples:
        right = ["abcd".index(label) for label in split["label"]]
        answers = tuple(names[k] if n % 2 else str(k) for n, k in enumerate(right))
        return Examples(
            {"prompt": split["text"], "choices": (offered,) * len(right), "answer": answers}
        )

    return replace(words, train=asked(words.train), test=asked(words.test))


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> TorchTrainer:
    directory = save_model(tmp_path_factory.mktemp("llama"), "llama", language=True)
    config = make_config(
        str(directory), targets=("q_proj", "v_proj"), max_length=MAX_LENGTH, eval_examples=60
    )
    return make_trainer(config, Choice.of(make_choices()))


def plain_example(trainer: TorchTrainer, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Return the tokens of a prompt, cut at its beginning, and of the whole answer with its end."""
    tokenizer = AutoTokenizer.from_pretrained(str(trainer.source.directory))
    head = tokenizer(f"{prompt}\n")["input_ids"]
    tail = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
    return head[-(MAX_LENGTH - len(tail)) :], tail


def plain_inputs(trainer: TorchTrainer, indices: IntArray) -> dict[str, torch.Tensor]:
    """Return the right answers behind their prompts, which have no loss, padded by hand."""
    task = trainer._task
    assert isinstance(task, Choice)
    prompts, offered, right = task.data.train["prompt"], task.offered["train"], task.right["train"]
    rows = [plain_example(trainer, prompts[k], offered[k][right[k]]) for k in indices]
    longest = max(len(head) + len(tail) for head, tail in rows)
    spare = [longest - len(head) - len(tail) for head, tail in rows]
    ids = [head + tail + [0] * left for (head, tail), left in zip(rows, spare, strict=True)]
    mask = [[1] * (longest - left) + [0] * left for left in spare]
    labels = [
        [IGNORED] * len(head) + tail + [IGNORED] * left
        for (head, tail), left in zip(rows, spare, strict=True)
    ]
    named = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: torch.tensor(values) for name, values in named.items()}


def test_training_is_that_of_a_plain_loop_on_right_answers(trainer: TorchTrainer) -> None:
    """Both take the same batches and reach the same adapter to 1e-5 in fp32, with every loss the
    same."""
    job = make_job(trainer, steps=6)
    (result,) = trainer.train([job])
    model = plain_model(trainer, job.broadcast.adapter).eval()
    losses = train_plainly(trainer, job, model, partial(plain_inputs, trainer))
    assert result.train_loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert_has_adapter(model, result.adapter)


def test_the_likeliest_answer_is_chosen_as_by_transformers_alone(trainer: TorchTrainer) -> None:
    start = trainer.spec.initial_adapter(4, 8.0, np.random.default_rng(0))
    job = replace(make_job(trainer, adapter=start, steps=60), examples=np.arange(240))
    adapter = trainer.train([job])[0].adapter
    reported = trainer.evaluate(adapter).values
    model = plain_model(trainer, adapter).eval()
    task = trainer._task
    assert isinstance(task, Choice)
    hits, losses, cut = [], [], 0
    for index in range(60):
        found = []
        for answer in task.offered["test"][index]:
            prompt = task.data.test["prompt"][index]
            head, tail = plain_example(trainer, prompt, answer)
            cut += len(head) < len(prompt.split())
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([head + tail])).logits[0]
            of_tail = logits.log_softmax(1)[len(head) - 1 : -1]
            found.append([float(row[token]) for row, token in zip(of_tail, tail, strict=True)])
        right = int(task.right["test"][index])
        hits.append(int(np.argmax([sum(each) for each in found])) == right)
        losses += [-each for each in found[right]]
    assert cut > 10
    assert reported["accuracy"] == pytest.approx(np.mean(hits))
    assert reported["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert reported["loss"] < trainer.evaluate(start).values["loss"]


def test_an_answer_is_a_text_or_the_place_of_one() -> None:
    task = Choice.of(make_choices())
    labels = make_dataset().labels
    for split in ("train", "test"):
        assert task.right[split].tolist() == labels[split].tolist()  # type: ignore[index]
    assert task.facts() == {"chance": 0.25}


@pytest.mark.parametrize(
    ("choices", "answer", "words"),
    [
        ('["yes", "no"]', "maybe", "answer must be one of the choices, or the place of one from 0"),
        ('["yes", "no"]', "2", "answer must be one of the choices"),
        ('["yes", "yes"]', "yes", "choices must be a JSON list of 2 to 100 different texts"),
        ('["yes"]', "yes", "choices must be a JSON list"),
        ("yes, no", "yes", "choices must be a JSON list"),
        ('["yes", 3]', "yes", "choices must be a JSON list"),
        ("[" * 100_000, "yes", "choices must be a JSON list"),
    ],
)
def test_what_is_no_choice_is_refused_with_its_place(
    tmp_path: Path, choices: str, answer: str, words: str
) -> None:
    odd = Examples(
        {"prompt": ("a", "b"), "choices": ('["x", "y"]', choices), "answer": ("x", answer)},
        tmp_path / "train.csv",
        (2, 3),
    )
    with pytest.raises(ValueError, match=rf"{words}.*train\.csv, line 3"):
        Choice.of(replace(make_choices(), train=odd))


def test_an_answer_without_room_for_its_prompt_is_refused(tmp_path: Path) -> None:
    directory = save_model(tmp_path, "llama", language=True)
    data = make_choices()
    long = f'["{"word1 " * MAX_LENGTH}", "word2"]'
    odd = Examples({"prompt": ("a",), "choices": (long,), "answer": ("1",)})
    config = make_config(str(directory), targets=("q_proj",), max_length=MAX_LENGTH)
    with pytest.raises(ValueError, match="an answer must leave room for a token of its prompt"):
        make_trainer(config, Choice.of(replace(data, test=odd)))
