"""Causal language modelling trains, scores and exports as transformers and peft do it alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from devices.datasets.dataset import Examples
from devices.tasks.causal_lm import CausalLM
from devices.tasks.task import IGNORED
from devices.tasks.token_losses import token_losses
from devices.training.batches import cut_rows
from devices.training.export import save_peft
from devices.training.trainer import TorchTrainer
from devices.vocabulary.plan import Adapter
from tests.devices.training.plain_loop import assert_has_adapter, train_plainly
from tests.devices.training.tiny_task import (
    TARGETS,
    make_config,
    make_dataset,
    make_job,
    make_trainer,
    random_adapter,
    save_model,
)
from tests.torture import long

MAX_LENGTH = 12


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def trainer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> TorchTrainer:
    """Return a trainer on a random decoder of two blocks, with closed forms of its costs or not."""
    family = request.param
    directory = save_model(tmp_path_factory.mktemp(family), family, language=True)
    targets = TARGETS[family]
    config = make_config(str(directory), targets=targets, max_length=MAX_LENGTH, eval_examples=60)
    return make_trainer(config, CausalLM.of(make_dataset().data))


def plain_model(trainer: TorchTrainer, adapter: Adapter) -> Any:
    """Return a model of transformers and peft alone with the same adapter."""
    base = AutoModelForCausalLM.from_pretrained(str(trainer.source.directory), dtype=torch.float32)
    targets = [layer.name for layer in trainer.spec.targets]
    rank = adapter.rank
    config = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=adapter.scale * rank, target_modules=targets
    )
    model = get_peft_model(base, config)
    for layer, factors in zip(lora_layers(model), adapter.factors.values(), strict=True):
        with torch.no_grad():
            layer.lora_A["default"].weight.copy_(torch.from_numpy(factors.a))
            layer.lora_B["default"].weight.copy_(torch.from_numpy(factors.b))
    return model


def lora_layers(model: Any) -> Iterator[Any]:
    """Yield the adapted layers from the first block up, as an adapter names them."""
    return (module for module in model.modules() if hasattr(module, "lora_A"))


def plain_inputs(trainer: TorchTrainer, texts: list[str]) -> dict[str, torch.Tensor]:
    """Return tokens, mask and labels as a user of transformers makes them."""
    tokenizer = AutoTokenizer.from_pretrained(str(trainer.source.directory))
    rows = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id][:MAX_LENGTH] for text in texts]
    padded = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    labels = padded["input_ids"].masked_fill(padded["attention_mask"] == 0, IGNORED)
    keys = ("input_ids", "attention_mask")
    return {**{key: padded[key] for key in keys}, "labels": labels}


def test_training_is_that_of_a_plain_loop(trainer: TorchTrainer) -> None:
    """Both take the same batches and reach the same adapter to 1e-5 in fp32, with every loss the
    same."""
    job = make_job(trainer, steps=6)
    (result,) = trainer.train([job])
    model = plain_model(trainer, job.broadcast.adapter).eval()  # without GPT-2's dropout
    texts = trainer._task.data.train["text"]
    losses = train_plainly(
        trainer, job, model, lambda batch: plain_inputs(trainer, [texts[k] for k in batch])
    )
    assert result.train_loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert_has_adapter(model, result.adapter)
    before, after = job.broadcast.adapter.factors, result.adapter.factors
    assert max(np.abs(after[key].b - before[key].b).max() for key in after) > 0.01


def test_plain_peft_gets_the_perplexity_that_we_report(
    trainer: TorchTrainer, tmp_path: Path
) -> None:
    adapter = random_adapter(trainer)
    reported = trainer.evaluate(adapter).values
    save_peft(adapter, tmp_path, source=trainer.source, spec=trainer.spec)
    base = AutoModelForCausalLM.from_pretrained(str(trainer.source.directory))
    model = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    assert model.peft_config["default"].task_type == "CAUSAL_LM"
    losses, right = [], 0
    for text in trainer._task.data.test["text"]:  # one by one, without padding
        inputs = plain_inputs(trainer, [text])
        with torch.no_grad():
            output = model(**inputs)
        num_tokens = inputs["labels"].shape[1] - 1
        losses += [output.loss.item()] * num_tokens
        right += int((output.logits[0, :-1].argmax(1) == inputs["labels"][0, 1:]).sum())
    assert reported["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert reported["perplexity"] == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    assert reported["token_accuracy"] == pytest.approx(right / len(losses))


def packed_rows(trainer: TorchTrainer, texts: list[str]) -> list[list[int]]:
    """Return the rows of these texts as a plain loop makes them: joined, each with its end, and
    cut."""
    tokenizer = AutoTokenizer.from_pretrained(str(trainer.source.directory))
    rows: list[list[int]] = [[]]
    for text in texts:
        for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]:
            if len(rows[-1]) == MAX_LENGTH:
                rows.append([])
            rows[-1].append(token)
    return rows if len(rows[-1]) == MAX_LENGTH or len(rows) == 1 else rows[:-1]


@pytest.fixture(scope="module")
def packing(tmp_path_factory: pytest.TempPathFactory) -> TorchTrainer:
    directory = save_model(tmp_path_factory.mktemp("packed"), "llama", language=True)
    targets = TARGETS["llama"]
    config = make_config(str(directory), targets=targets, max_length=MAX_LENGTH, eval_examples=60)
    return make_trainer(config, replace(CausalLM.of(make_dataset().data), packing="packed"))


def test_packed_texts_are_trained_as_by_a_plain_loop(packing: TorchTrainer) -> None:
    """Every row of the device's own texts is full, so no token is charged and not learned."""
    job = make_job(packing, steps=6)
    (result,) = packing.train([job])
    model = plain_model(packing, job.broadcast.adapter).eval()
    texts = packing._task.data.train["text"]
    rows = torch.tensor(packed_rows(packing, [texts[k] for k in job.examples]))
    assert rows.shape[1] == MAX_LENGTH
    lengths = np.full(len(rows), MAX_LENGTH)

    def inputs(batch: Any) -> dict[str, Any]:
        return {"input_ids": rows[batch], "labels": rows[batch]}

    on_rows = replace(job, examples=np.arange(len(rows)))
    losses = train_plainly(packing, on_rows, model, inputs, lengths=lengths)
    assert result.train_loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert_has_adapter(model, result.adapter)


def test_packed_texts_are_tested_as_by_a_plain_loop(packing: TorchTrainer) -> None:
    adapter = random_adapter(packing)
    model = plain_model(packing, adapter).eval()
    texts = list(packing._task.data.test["text"])
    assert len(texts) <= 60, "all of them are tested on, in their order"
    rows = torch.tensor(packed_rows(packing, texts))
    with torch.no_grad():
        loss = model(input_ids=rows, labels=rows).loss.item()
    assert packing.evaluate(adapter).values["loss"] == pytest.approx(loss, rel=1e-5)
    assert np.isfinite(packing.block_salience("taylor")).all()


def test_packed_jobs_in_one_pass_train_as_alone(packing: TorchTrainer) -> None:
    jobs = [make_job(packing, seed=1), replace(make_job(packing), examples=np.arange(90, 140))]
    jobs = [replace(job, stack=2) for job in jobs]
    stacked = packing.train(jobs)
    for job, together in zip(jobs, stacked, strict=True):
        alone = packing._train_stack([job])[0]
        assert together.train_loss == pytest.approx(alone.train_loss, rel=1e-5)


@pytest.mark.parametrize(("num_tokens", "rows"), [(2, [2]), (11, [11]), (12, [12]), (30, [12, 12])])
def test_what_is_left_over_has_no_row_unless_it_is_all(num_tokens: int, rows: list[int]) -> None:
    tokens = np.arange(num_tokens)
    found = cut_rows(tokens, 12)
    assert [len(row) for row in found] == rows
    np.testing.assert_array_equal(np.concatenate(found), tokens[: sum(rows)])


@long
def test_perplexity_falls_with_packed_activations_and_quantized_weights(
    trainer: TorchTrainer,
) -> None:
    start = trainer.spec.initial_adapter(4, 8.0, np.random.default_rng(0))
    before = trainer.evaluate(start).values["perplexity"]
    for plan in ({}, {"activation_bits": 8}, {"activation_bits": 0}, {"weight_format": "int8"}):
        job = make_job(trainer, adapter=start, steps=40, **plan)
        (result,) = trainer.train([replace(job, examples=np.arange(240))])
        assert trainer.evaluate(result.adapter).values["perplexity"] < 0.85 * before


def test_jobs_in_one_pass_train_as_alone(trainer: TorchTrainer) -> None:
    jobs = [make_job(trainer, seed=seed) for seed in (1, 2)]
    stacked = trainer.train([replace(job, stack=2) for job in jobs])
    for job, together in zip(jobs, stacked, strict=True):
        alone = trainer._train_stack([replace(job, stack=2)])[0]
        assert together.train_loss == pytest.approx(alone.train_loss, rel=1e-5)
        for key, factors in together.adapter.factors.items():
            np.testing.assert_allclose(factors.b, alone.adapter.factors[key].b, atol=1e-5)


def test_padding_and_the_last_token_have_no_loss() -> None:
    logits = torch.randn(2, 3, 5)
    targets = torch.tensor([[1, 2, IGNORED], [4, IGNORED, IGNORED]])
    means, each = token_losses(logits, targets)
    by_hand = -logits.log_softmax(2)
    first, second = by_hand[0, 0, 1] + by_hand[0, 1, 2], by_hand[1, 0, 4]
    assert means.tolist() == pytest.approx([float((first + second) / 3)])
    assert each.tolist() == pytest.approx([float(first / 2), float(second)])
    apart, _ = token_losses(logits, targets, num_jobs=2)
    assert apart.tolist() == pytest.approx([float(first / 2), float(second)])


def test_salience_is_measured_for_every_metric(trainer: TorchTrainer) -> None:
    for metric in ("wanda", "taylor", "influence", "outerr"):
        salience = trainer.block_salience(metric)  # type: ignore[arg-type]
        assert salience.shape == (2,)
        assert np.isfinite(salience).all()


def test_a_text_of_one_token_is_refused_where_no_end_follows(tmp_path: Path) -> None:
    directory = save_model(tmp_path, "llama", language=True)
    settings = directory / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"eos_token"', '"unused_token"'), "utf-8")
    data = make_dataset().data
    short = Examples({"text": ("word1 word2", "word3")}, tmp_path / "train.csv", (2, 3))
    task = CausalLM.of(replace(data, train=short))
    config = make_config(str(directory), targets=("q_proj",))
    with pytest.raises(ValueError, match=r"at least two tokens.*'word3'.*train\.csv, line 3"):
        make_trainer(config, task)


def test_a_model_that_reads_from_both_sides_is_refused(tmp_path: Path) -> None:
    task = CausalLM.of(make_dataset().data)
    directory = save_model(tmp_path, "bert")
    with pytest.raises(ValueError, match=r"must have a model that reads from left to right"):
        make_trainer(make_config(str(directory)), task)


def test_what_a_base_without_an_output_matrix_lacks_is_named(tmp_path: Path) -> None:
    directory = save_model(tmp_path, "llama")  # with a classifier, and no language model's head
    task = CausalLM.of(make_dataset().data)
    with pytest.raises(ValueError, match=r"the weights .*must be those that"):
        make_trainer(make_config(str(directory), targets=("q_proj",)), task)
