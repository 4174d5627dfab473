"""Instruction tuning trains, answers and exports as transformers and peft do it alone."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from devices.datasets.dataset import Examples, TextDataset
from devices.tasks.instructions import Instructions, rouge_l
from devices.tasks.registry import with_options
from devices.tasks.task import IGNORED
from devices.training.trainer import TorchTrainer
from tests.devices.training.plain_loop import assert_has_adapter, train_plainly
from tests.devices.training.test_causal_lm import plain_model
from tests.devices.training.tiny_task import (
    TARGETS,
    WORDS,
    make_config,
    make_dataset,
    make_job,
    make_trainer,
    random_adapter,
    save_model,
)

MAX_LENGTH = 16
CHAT = (
    "{% for message in messages %}{{ message['role'] }} word0 {{ message['content'] }} [SEP] "
    "{% endfor %}{% if add_generation_prompt %}assistant word0 {% endif %}"
)


def make_instructions() -> TextDataset:
    """Return prompts of two words of a class; an answer is its three words and another."""
    words = make_dataset().data

    def asked(split: Examples) -> Examples:
        texts, labels = split["text"], split["label"]
        own = {label: " ".join(WORDS[12 * k : 12 * k + 3]) for k, label in enumerate("abcd")}
        return Examples(
            {
                "prompt": tuple(" ".join(text.split()[:2]) for text in texts),
                "answer": tuple(
                    f"{own[label]} {text.split()[0]}"
                    for text, label in zip(texts, labels, strict=True)
                ),
            }
        )

    return replace(words, train=asked(words.train), test=asked(words.test))


@pytest.fixture(scope="module", params=["llama-plain", "gpt2-plain", "llama-chat"])
def trainer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> TorchTrainer:
    """Return a trainer on a random decoder, with a template of ours or the tokenizer's own."""
    family, _, template = request.param.partition("-")
    directory = save_model(tmp_path_factory.mktemp(family), family, language=True)
    (directory / "chat_template.jinja").write_text(CHAT, "utf-8")
    config = make_config(
        str(directory), targets=TARGETS[family], max_length=MAX_LENGTH, eval_examples=20
    )
    options = {"template": "chat" if template == "chat" else "word1 {prompt} word2 ",
               "answer_tokens": 6}  # fmt: skip
    return make_trainer(config, with_options(Instructions.of(make_instructions()), options))


def plain_example(trainer: TorchTrainer, index: int, split: str = "train") -> tuple[Any, Any]:
    """Return the tokens of prompt and answer as a user of transformers makes them."""
    tokenizer = AutoTokenizer.from_pretrained(str(trainer.source.directory))
    examples = trainer._task.data[split]  # type: ignore[index]
    prompt, answer = examples["prompt"][index], examples["answer"][index]
    if trainer._task.template == "chat":  # type: ignore[attr-defined]
        chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        head = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True)["input_ids"]
        whole = tokenizer.apply_chat_template(chat)["input_ids"]
        return head, whole[len(head) :]
    head = tokenizer(f"word1 {prompt} word2 ")["input_ids"]
    return head, [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]


def plain_inputs(trainer: TorchTrainer, indices: Any) -> dict[str, torch.Tensor]:
    rows = [plain_example(trainer, index) for index in indices]
    ids = [(head + tail)[:MAX_LENGTH] for head, tail in rows]
    labels = [([IGNORED] * len(head) + tail)[:MAX_LENGTH] for head, tail in rows]
    longest = max(map(len, ids))
    return {
        "input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in ids]),
        "attention_mask": torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in ids]),
        "labels": torch.tensor([row + [IGNORED] * (longest - len(row)) for row in labels]),
    }


def test_training_is_that_of_a_plain_loop(trainer: TorchTrainer) -> None:
    """Both take the same batches and reach the same adapter to 1e-5 in fp32, with every loss the
    same."""
    job = make_job(trainer, steps=6)
    (result,) = trainer.train([job])
    model = plain_model(trainer, job.broadcast.adapter).eval()
    losses = train_plainly(trainer, job, model, partial(plain_inputs, trainer))
    assert result.train_loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert_has_adapter(model, result.adapter)


def test_greedy_answers_are_those_of_plain_generate(trainer: TorchTrainer) -> None:
    """After some training, so that some answers are right; one text at a time, without padding."""
    start = trainer.spec.initial_adapter(4, 8.0, np.random.default_rng(0))
    job = replace(make_job(trainer, adapter=start, steps=120), examples=np.arange(240))
    adapter = trainer.train([job])[0].adapter
    reported = trainer.evaluate(adapter).values
    model = plain_model(trainer, adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(trainer.source.directory))
    rouge, exact = [], []
    tested = np.sort(np.concatenate(trainer._test_chunks))
    assert len(tested) == 20
    for index in tested.tolist():
        head, tail = plain_example(trainer, index, "test")
        made = model.generate(
            input_ids=torch.tensor([head]), max_new_tokens=6, do_sample=False, pad_token_id=0,
            eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        answer = tokenizer.decode(made[0, len(head) :], skip_special_tokens=True)
        wanted = tokenizer.decode(tail[: MAX_LENGTH - len(head)], skip_special_tokens=True)
        exact.append(answer.split() == wanted.split())
        rouge.append(rouge_l(answer, wanted))
    assert reported["exact_match"] == pytest.approx(np.mean(exact))
    assert reported["rouge_l"] == pytest.approx(np.mean(rouge))
    assert reported["rouge_l"] > trainer.evaluate(start).values["rouge_l"]


def test_an_evaluation_without_answers_has_the_metrics_of_tokens_alone(
    trainer: TorchTrainer,
) -> None:
    config = replace(trainer._config, eval_examples=8)
    quiet = make_trainer(config, replace(trainer._task, answer_tokens=0))  # type: ignore[type-var]
    assert list(quiet.evaluate(random_adapter(quiet)).values) == [
        "perplexity", "loss", "token_accuracy",
    ]  # fmt: skip


def test_no_token_of_a_prompt_has_a_target(trainer: TorchTrainer) -> None:
    for index in range(20):
        head, tail = plain_example(trainer, index)
        targets = trainer._train_texts.targets[index]
        assert targets[: len(head) - 1].tolist() == [IGNORED] * (len(head) - 1)
        end = [IGNORED]
        assert targets[len(head) - 1 :].tolist() == [*tail[: MAX_LENGTH - len(head)], *end]


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [  # the values of rougeL by rouge_score 0.1.2 without stemmer
        ("the cat sat on the mat", "The cat is on the mat.", 10 / 12),
        ("a b c d", "d c b a", 0.25),
        ("", "word", 0.0),
        ("one two", "three", 0.0),
        ("3.5 grams", "3,5 grams", 1.0),
        ("!", "!", 1.0),  # our own rule: equal answers without words score 1
    ],
)
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(
    answer: str, reference: str, expected: float
) -> None:
    assert rouge_l(answer, reference) == pytest.approx(expected)


def test_a_prompt_that_leaves_no_room_for_its_answer_is_refused_with_its_place(
    tmp_path: Path,
) -> None:
    directory = save_model(tmp_path, "llama", language=True)
    prompts = ("word1", "word2 " * MAX_LENGTH)
    long = Examples({"prompt": prompts, "answer": ("a", "b")}, tmp_path / "train.csv", (2, 3))
    task = Instructions.of(replace(make_instructions(), train=long))
    config = make_config(str(directory), targets=("q_proj",), max_length=MAX_LENGTH)
    with pytest.raises(ValueError, match=r"leave room for its answer .*train\.csv, line 3"):
        make_trainer(config, task)


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    directory = save_model(tmp_path, "llama", language=True)
    task = with_options(Instructions.of(make_instructions()), {"template": "chat"})
    config = make_config(str(directory), targets=("q_proj",))
    with pytest.raises(ValueError, match="has no chat template, got chat"):
        make_trainer(config, task)


def test_a_chat_template_that_breaks_is_one_sentence(tmp_path: Path) -> None:
    directory = save_model(tmp_path, "llama", language=True)
    config = make_config(str(directory), targets=("q_proj",))
    task = with_options(Instructions.of(make_instructions()), {"template": "chat"})
    for broken in ("{% for", "{{ raise_exception('no system') }}", "{{ messages | length }}"):
        (directory / "chat_template.jinja").write_text(broken, "utf-8")
        with pytest.raises(ValueError, match=r"tokenizer|chat template") as error:
            make_trainer(config, task)
        assert len(json.dumps(str(error.value))) < 1000
