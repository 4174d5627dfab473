"""Optimizers, clipping, smoothing and rates train as a plain loop of transformers and peft does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adafactor, AdamW, Optimizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from devices.tasks.causal_lm import CausalLM
from devices.tasks.registry import smoothed
from devices.tasks.task import IGNORED, Task
from devices.training.batches import draw_batches, in_common_order
from devices.training.trainer import TorchTrainer
from devices.vocabulary.plan import Adapter, TermGrid
from devices.vocabulary.trainer import TrainingJob
from tests.devices.training.test_causal_lm import lora_layers, plain_inputs, plain_model
from tests.devices.training.tiny_task import (
    TARGETS,
    make_config,
    make_dataset,
    make_job,
    make_trainer,
    random_adapter,
    save_model,
)
from tests.torture import some
from traces.arrays import IntArray

RATE, SGD_RATE, DECAY = 0.01, 0.3, 0.05
MakeOptimizer = Callable[[Sequence[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class Recipe:
    """A recipe holds its options, and what a plain loop makes of them."""

    options: Mapping[str, Any]
    make: MakeOptimizer
    rate_share: float = 1.0

    @property
    def clip_norm(self) -> float | None:
        return self.options.get("clip_norm")

    @property
    def smoothing(self) -> float:
        return float(self.options.get("label_smoothing", 0.0))


def adamw(rate: float = RATE) -> MakeOptimizer:
    return lambda parameters: AdamW(parameters, lr=rate, weight_decay=DECAY)


def sgd(momentum: float) -> MakeOptimizer:
    return lambda parameters: SGD(parameters, lr=SGD_RATE, momentum=momentum, weight_decay=DECAY)


def adafactor(parameters: Sequence[nn.Parameter]) -> Optimizer:
    return Adafactor(parameters, lr=RATE, weight_decay=DECAY)


BY_SGD = {"optimizer": "sgd", "learning_rate": SGD_RATE}
RECIPES = {
    "sgd": Recipe(BY_SGD, sgd(0.9)),
    "sgd without momentum": Recipe({**BY_SGD, "momentum": 0.0}, sgd(0.0)),
    "adafactor": Recipe({"optimizer": "adafactor"}, adafactor),
    "clipped": Recipe({**BY_SGD, "clip_norm": 0.2}, sgd(0.9)),
    "smoothed": Recipe({"label_smoothing": 0.2}, adamw()),
    "a quarter of the rate": Recipe({}, adamw(RATE / 4), rate_share=0.25),
    "batches at random": Recipe({"batches": "random"}, adamw()),
    "batches of buckets": Recipe({"batches": "buckets"}, adamw()),
}


def trainer_of(directory: str, family: str, task: Task, recipe: Recipe) -> TorchTrainer:
    options = {"learning_rate": RATE, "weight_decay": DECAY, "max_length": 12, **recipe.options}
    config = make_config(directory, targets=TARGETS[family], **options)
    return make_trainer(config, smoothed(task, recipe.smoothing))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("bert"), "bert"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("llama"), "llama", language=True))


def plain_classifier(trainer: TorchTrainer, adapter: Adapter) -> Any:
    """Return a model of transformers and peft alone with the same adapter and head."""
    base = AutoModelForSequenceClassification.from_pretrained(
        str(trainer.source.directory), num_labels=4
    )
    targets = [layer.name for layer in trainer.spec.targets]
    rank = adapter.rank
    model = get_peft_model(
        base,
        LoraConfig(
            task_type="SEQ_CLS", r=rank, lora_alpha=adapter.scale * rank, target_modules=targets
        ),
    )
    with torch.no_grad():
        for layer, factors in zip(lora_layers(model), adapter.factors.values(), strict=True):
            layer.lora_A["default"].weight.copy_(torch.from_numpy(factors.a))
            layer.lora_B["default"].weight.copy_(torch.from_numpy(factors.b))
        for name, values in head_of(model).items():
            values.copy_(torch.from_numpy(adapter.head[name]))
    return model.eval()  # without dropout


def head_of(model: Any) -> dict[str, nn.Parameter]:
    linear = model.base_model.model.classifier.modules_to_save["default"]
    return {"classifier.weight": linear.weight, "classifier.bias": linear.bias}


def batches_of(trainer: TorchTrainer, job: TrainingJob) -> list[IntArray]:
    lengths = trainer._train_texts.lengths
    batches = draw_batches(
        job.examples,
        lengths,
        steps=job.plan.local_steps,
        batch_size=job.plan.batch_size,
        rng=np.random.default_rng(np.random.SeedSequence(job.seed).generate_state(2)[0]),
        kind=trainer._config.batches,
    )
    if job.stack == 1:
        return batches
    return in_common_order(batches, lengths, np.random.default_rng(job.broadcast.version))


def classify(trainer: TorchTrainer, model: Any, batch: IntArray, recipe: Recipe) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(str(trainer.source.directory))
    texts = [trainer._task.data.train["text"][index] for index in batch]
    inputs = tokenizer(texts, truncation=True, max_length=12, padding=True, return_tensors="pt")
    names = sorted(set(trainer._task.data.train["label"]))
    labels = torch.tensor([names.index(trainer._task.data.train["label"][k]) for k in batch])
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    return functional.cross_entropy(logits, labels, label_smoothing=recipe.smoothing)


def predict(trainer: TorchTrainer, model: Any, batch: IntArray, recipe: Recipe) -> torch.Tensor:
    texts = trainer._task.data.train["text"]
    inputs = plain_inputs(trainer, [texts[index] for index in batch])
    labels = inputs.pop("labels")
    logits = model(**inputs).logits
    return functional.cross_entropy(
        logits[:, :-1].flatten(0, 1),
        labels[:, 1:].flatten(),
        ignore_index=IGNORED,
        label_smoothing=recipe.smoothing,
    )


def plain_loop(
    trainer: TorchTrainer, model: Any, job: TrainingJob, recipe: Recipe, loss_of: Any
) -> list[float]:
    """Train the model in place, and return the loss before each step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer, losses = recipe.make(parameters), []
    for batch in batches_of(trainer, job):
        loss = loss_of(trainer, model, batch, recipe)
        loss.backward()
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def pairs_of(model: Any, adapter: Adapter) -> Iterator[tuple[Any, Any]]:
    """Yield each trained tensor of ours with that of the plain model."""
    for layer, factors in zip(lora_layers(model), adapter.factors.values(), strict=True):
        yield factors.a, layer.lora_A["default"].weight.detach().numpy()
        yield factors.b, layer.lora_B["default"].weight.detach().numpy()
    if adapter.head:
        for name, values in head_of(model).items():
            yield adapter.head[name], values.detach().numpy()


@pytest.mark.parametrize("name", some(RECIPES, 2))
def test_a_classifier_is_trained_as_by_a_plain_loop_alone_and_stacked(name: str, bert: str) -> None:
    """All take the same batches and reach the same adapter and head to 1e-5 in fp32."""
    recipe = RECIPES[name]
    trainer = trainer_of(bert, "bert", make_dataset(), recipe)
    job = replace(make_job(trainer, steps=5), rate_share=recipe.rate_share)
    other = replace(job, seed=8, broadcast=replace(job.broadcast, adapter=random_adapter(trainer)))
    stack = [replace(one, stack=2) for one in (job, other)]
    for ours, (one, result) in enumerate(
        [(job, trainer.train([job])[0]), *zip(stack, trainer.train(stack), strict=True)]
    ):
        model = plain_classifier(trainer, one.broadcast.adapter)
        losses = plain_loop(trainer, model, one, recipe, classify)
        assert result.train_loss == pytest.approx(np.mean(losses), rel=1e-5)
        for mine, plain in pairs_of(model, result.adapter):
            np.testing.assert_allclose(mine, plain, atol=1e-5, err_msg=f"{name}, way {ours}")
        before, after = one.broadcast.adapter.factors, result.adapter.factors
        assert max(np.abs(after[key].b - before[key].b).max() for key in after) > 1e-3


@pytest.mark.parametrize("name", ["sgd", "adafactor", "clipped", "smoothed"])
def test_a_language_model_is_trained_as_by_a_plain_loop(name: str, llama: str) -> None:
    recipe = RECIPES[name]
    trainer = trainer_of(llama, "llama", CausalLM.of(make_dataset().data), recipe)
    job = make_job(trainer, steps=5)
    (result,) = trainer.train([job])
    model = plain_model(trainer, job.broadcast.adapter)
    losses = plain_loop(trainer, model, job, recipe, predict)
    assert result.train_loss == pytest.approx(np.mean(losses), rel=1e-5)
    for mine, plain in pairs_of(model, result.adapter):
        np.testing.assert_allclose(mine, plain, atol=1e-5)


def test_jobs_that_hold_other_numbers_of_terms_are_stacked_under_adafactor(bert: str) -> None:
    """Its means over rows and columns are each job's own, without the zeros beside its terms."""
    recipe = RECIPES["adafactor"]
    trainer = trainer_of(bert, "bert", make_dataset(), recipe)
    jobs = []
    for count in (1, 4):
        job = make_job(trainer, steps=5, seed=count)
        trained = np.zeros(job.plan.terms.held.shape, dtype=bool)
        trained[..., :count] = True
        grid = TermGrid(trained, trained, np.where(trained, 32, 0).astype(np.uint8))
        jobs.append(replace(job, plan=replace(job.plan, terms=grid), stack=2))
    together = trainer.train(jobs)
    for job, found in zip(jobs, together, strict=True):
        (alone,) = trainer._train_stack([job])
        for key, factors in found.adapter.factors.items():
            np.testing.assert_allclose(factors.a, alone.adapter.factors[key].a, atol=1e-5)
            np.testing.assert_allclose(factors.b, alone.adapter.factors[key].b, atol=1e-5)


def test_the_mean_squared_loss_is_of_targets_as_they_are(bert: str) -> None:
    """Selections rank devices by it, so smoothing must not reach it."""
    task = make_dataset()
    trainers = [
        trainer_of(bert, "bert", task, RECIPES[k]) for k in ("a quarter of the rate", "smoothed")
    ]
    plain, smooth = (t.train([make_job(t, steps=1)])[0] for t in trainers)
    assert smooth.squared_loss == plain.squared_loss
    assert smooth.train_loss != plain.train_loss


def test_jobs_of_two_rates_are_not_stacked(bert: str) -> None:
    trainer = trainer_of(bert, "bert", make_dataset(), RECIPES["sgd"])
    job = replace(make_job(trainer, steps=2), stack=2)
    slow = replace(job, rate_share=0.5)
    together = trainer.train([job, slow])
    for one, found in zip((job, slow), together, strict=True):
        assert found.adapter.digest == trainer._train(one).adapter.digest


@pytest.mark.parametrize("micro_batch", some((2, 1, 8), 3))
@pytest.mark.parametrize("task", ["classification", "language"])
def test_micro_batches_train_as_whole_batches_in_a_plain_loop(
    task: str, micro_batch: int, bert: str, llama: str
) -> None:
    """This holds also where texts have unequal numbers of tokens to predict; alone and stacked."""
    recipe = RECIPES["clipped"]
    if task == "classification":
        trainer = trainer_of(bert, "bert", make_dataset(), recipe)
    else:
        trainer = trainer_of(llama, "llama", CausalLM.of(make_dataset().data), recipe)
    job = make_job(trainer, steps=4)
    job = replace(job, plan=replace(job.plan, micro_batch=micro_batch))
    stack = [replace(job, stack=2), replace(job, stack=2, seed=9)]
    done = [(job, trainer.train([job])[0]), *zip(stack, trainer.train(stack), strict=True)]
    for one, result in done:
        if task == "classification":
            model = plain_classifier(trainer, one.broadcast.adapter)
            losses = plain_loop(trainer, model, one, recipe, classify)
        else:
            model = plain_model(trainer, one.broadcast.adapter)
            losses = plain_loop(trainer, model, one, recipe, predict)
        assert result.train_loss == pytest.approx(np.mean(losses), rel=1e-5)
        for mine, plain in pairs_of(model, result.adapter):
            np.testing.assert_allclose(mine, plain, atol=1e-5)
    whole = replace(job, plan=replace(job.plan, micro_batch=None))
    (at_once,) = trainer.train([whole])
    assert done[0][1].squared_loss == pytest.approx(at_once.squared_loss, rel=1e-5)


def test_a_proximal_term_counts_once_in_all_micro_batches(bert: str) -> None:
    trainer = trainer_of(bert, "bert", make_dataset(), RECIPES["sgd"])
    job = make_job(trainer, steps=4)
    ends = [
        trainer.train([replace(job, plan=replace(job.plan, proximal_mu=0.5, micro_batch=m))])[0]
        for m in (None, 2)
    ]
    for key, factors in ends[0].adapter.factors.items():
        np.testing.assert_allclose(factors.b, ends[1].adapter.factors[key].b, atol=1e-5)
