from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from devices.tasks.classification import Classification
from devices.training.adapters import load_adapter
from devices.training.batches import stratified_subset
from devices.training.model import ADAPTER, layer_path
from devices.training.trainer import CALIBRATION_EXAMPLES, SUBSET_SEED, TorchTrainer
from devices.vocabulary.plan import Factors, TermGrid
from devices.vocabulary.trainer import SalienceMetric
from tests.devices.training.tiny_task import TARGETS, make_config, make_job, make_trainer
from tests.torture import some

METRICS = get_args(SalienceMetric)


@pytest.fixture(scope="module")
def half_empty(dataset: Classification) -> TorchTrainer:
    """Return ``tiny`` with zeros for the weights of its upper block."""
    trainer = make_trainer(make_config(), dataset)
    with torch.no_grad():
        for layer in trainer._model.weights.blocks[1].values():
            layer.weight.zero_()
            layer.bias.zero_()
    return trainer


@pytest.mark.parametrize("metric", METRICS)
def test_a_block_of_zeros_does_not_matter(half_empty: TorchTrainer, metric: SalienceMetric) -> None:
    lower, upper = half_empty.block_salience(metric)
    # A layer norm of a normalised input changes it by no more than its epsilon.
    assert upper == pytest.approx(0.0, abs=1e-6)
    assert lower > 1e-6
    if metric == "wanda":  # relative to the mean of the two blocks
        assert lower == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_salience_is_measured_on_every_family(
    family_trainer: TorchTrainer, metric: SalienceMetric
) -> None:
    salience = family_trainer.block_salience(metric)
    assert salience.shape == (2,)
    assert (salience > 0).all()


def test_taylor_is_the_gradient_that_torch_gives(family_trainer: TorchTrainer) -> None:
    trainer = family_trainer
    neutral = trainer.spec.initial_adapter(1, 1.0, np.random.default_rng(0))
    plain = AutoModelForSequenceClassification.from_pretrained(trainer.source.directory).eval()
    with torch.no_grad():
        for name, values in neutral.head.items():
            plain.get_parameter(name).copy_(torch.tensor(values))
    texts = trainer._train_texts
    chosen = stratified_subset(texts.targets, CALIBRATION_EXAMPLES, SUBSET_SEED)
    batch = texts.batch(chosen, torch.device("cpu"))
    logits = plain(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    torch.nn.functional.cross_entropy(logits, batch.targets).backward()
    expected = []
    for block in range(2):
        paths = [layer_path(trainer.spec, block, layer.name) for layer in trainer.spec.linears]
        weights = [plain.get_submodule(path).weight for path in paths]
        products = torch.cat([(w * w.grad).abs().flatten() for w in weights])
        expected.append(products.mean().item())
    assert trainer.block_salience("taylor") == pytest.approx(np.array(expected), rel=1e-3)


@pytest.mark.parametrize("family_trainer", some(TARGETS, 4), indirect=True)
def test_fisher_information_is_the_mean_of_squared_gradients_text_by_text(
    family_trainer: TorchTrainer,
) -> None:
    """A plain loop over the texts gives the same, with a job of another adapter in between."""
    trainer = family_trainer
    rng = np.random.default_rng(1)
    drawn = trainer.spec.initial_adapter(2, 2.0, rng)
    factors = {
        key: Factors(a, rng.normal(0, 0.1, b.shape).astype(np.float32))
        for key, (a, b) in drawn.factors.items()
    }
    adapter = replace(drawn, factors=factors)
    found = trainer.block_fisher(adapter)
    trainer.train([make_job(trainer)])
    assert np.array_equal(trainer.block_fisher(adapter), found)
    texts, expected = trainer._train_texts, np.zeros(2)
    chosen = stratified_subset(texts.targets, CALIBRATION_EXAMPLES, SUBSET_SEED)
    grid = TermGrid.top_blocks(trainer.spec.grid_shape(2), 2)
    load_adapter(trainer._model, adapter, grid)
    trainer._model.weights.use_fp32()
    factors_of = [
        (key.block, factor)
        for key, layer in trainer._model.lora_layers.items()
        for factor in (layer.lora_A[ADAPTER].trained, layer.lora_B[ADAPTER].trained)
    ]
    totals = [torch.zeros_like(factor) for _, factor in factors_of]
    for one in chosen[:, None]:
        text = texts.batch(one, torch.device("cpu"))
        logits = trainer._model.network(**text.inputs).logits
        loss = torch.nn.functional.cross_entropy(logits, text.targets)
        gradients = torch.autograd.grad(loss, [factor for _, factor in factors_of])
        for total, gradient in zip(totals, gradients, strict=True):
            total += gradient.square()
    for (block, _), total in zip(factors_of, totals, strict=True):
        expected[block] += (total / len(chosen)).norm().item()
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("metric", METRICS)
def test_salience_depends_on_no_job_before(
    dataset: Classification, tiny: TorchTrainer, metric: SalienceMetric
) -> None:
    fresh = make_trainer(make_config(dtype="bf16"), dataset)
    first = fresh.block_salience(metric)
    job = make_job(fresh, weight_format="int4")
    trained = fresh.train([job])[0].adapter.digest
    assert np.array_equal(fresh.block_salience(metric), first)
    assert fresh.train([job])[0].adapter.digest == trained
    # Salience is computed in fp32, whatever the host trains in.
    assert np.array_equal(tiny.block_salience(metric), first)
