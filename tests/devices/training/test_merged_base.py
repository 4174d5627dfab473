"""What was merged into the base trains, is packed, is tested, and is exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from devices.training.adapters import load_adapter
from devices.training.export import save_peft
from devices.training.model import layer_path
from devices.training.trainer import TorchTrainer
from devices.training.weights import pack
from devices.vocabulary.adapter import Merged, Product
from devices.vocabulary.merged import multiplied_out
from devices.vocabulary.plan import WEIGHT_FORMATS, Adapter, Factors, TermGrid, WeightFormat
from tests.devices.training.tiny_task import make_job, random_adapter


def with_merged(adapter: Adapter, seed: int = 5) -> Adapter:
    """Return the adapter with products merged into its base: factors below, a matrix above."""
    rng, products = np.random.default_rng(seed), {}
    for key, (a, b) in adapter.factors.items():
        factors = Factors(
            rng.normal(0, 0.1, (2, a.shape[1])).astype(np.float32),
            rng.normal(0, 0.1, (len(b), 2)).astype(np.float32),
        )
        product: Product = factors if key.block == 0 else (factors.b @ factors.a)
        products[key] = product
    return replace(adapter, merged=Merged(products))


@contextmanager
def changed_base(trainer: TorchTrainer, adapter: Adapter) -> Iterator[None]:
    """Overwrite the pretrained weights by hand with W + scale * B A."""
    store, kept = trainer._model.weights, {}
    store.use_fp32()
    for key, product in adapter.merged.products.items():
        layer = store.blocks[key.block][key.module]
        kept[key] = layer.weight.detach().clone()
        layer.weight.data += torch.from_numpy(adapter.scale * multiplied_out(product))
    store._packed.clear()
    try:
        yield
    finally:
        for key, weight in kept.items():
            store.blocks[key.block][key.module].weight.data.copy_(weight)
        store._packed.clear()


def logits(trainer: TorchTrainer, adapter: Adapter) -> torch.Tensor:
    load_adapter(trainer._model, adapter, TermGrid.top_blocks((2, 2, 4), 2))
    trainer._model.weights.use_fp32(adapter.merged, adapter.scale)
    with torch.no_grad():
        return trainer._model.logits(trainer._train_texts.batch(np.arange(12), torch.device("cpu")))


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_a_merged_weight_is_the_sum_quantized_anew(
    tiny: TorchTrainer, weight_format: WeightFormat
) -> None:
    adapter, store = with_merged(random_adapter(tiny)), tiny._model.weights
    formats = (weight_format,) * 2
    store.use(formats)
    before = [layer.packed.dequantize(torch.float32) for layer in store.blocks[0].values()]
    store.use(formats, adapter.merged, adapter.scale)
    for key, product in adapter.merged.products.items():
        layer = store.blocks[key.block][key.module]
        change = torch.from_numpy(adapter.scale * multiplied_out(product))
        wanted = pack((layer.weight.double() + change).float(), weight_format)
        assert torch.equal(layer.packed.dequantize(torch.float32), wanted.dequantize(torch.float32))
    store.use(formats)
    for layer, weight in zip(store.blocks[0].values(), before, strict=True):
        assert torch.equal(layer.packed.dequantize(torch.float32), weight)


@pytest.mark.parametrize("weight_format", ["fp32", "int4"])
def test_training_on_a_merged_base_is_training_on_those_weights(
    tiny: TorchTrainer, weight_format: WeightFormat
) -> None:
    plain = random_adapter(tiny)
    merged = with_merged(plain)
    job, on_merged = (
        make_job(tiny, adapter=adapter, weight_format=weight_format) for adapter in (plain, merged)
    )
    (got,) = tiny.train([on_merged])
    with changed_base(tiny, merged):
        (wanted,) = tiny.train([job])
        tested = tiny.evaluate(plain)
    assert replace(got.adapter, merged=plain.merged).digest == wanted.adapter.digest
    assert got.adapter.merged is merged.merged
    assert tiny.evaluate(merged) == tested
    assert tiny.evaluate(plain) != tested
    (unmerged,) = tiny.train([job])
    assert unmerged.adapter.digest != wanted.adapter.digest


def test_every_family_computes_and_exports_the_merged_model(
    family_trainer: TorchTrainer, tmp_path: Path
) -> None:
    trainer, directory = family_trainer, str(family_trainer.source.directory)
    adapter = with_merged(random_adapter(trainer))
    save_peft(adapter, tmp_path, source=trainer.source, spec=trainer.spec)
    batch = trainer._train_texts.batch(np.arange(12), torch.device("cpu"))
    exported = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(directory, num_labels=4), str(tmp_path)
    )
    by_hand = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=4)
    with torch.no_grad():
        for key, (a, b) in adapter.factors.items():
            change = b.astype(np.float64) @ a + multiplied_out(adapter.merged.products[key])
            layer = by_hand.get_submodule(layer_path(trainer.spec, key.block, key.module))
            added = torch.from_numpy(adapter.scale * change).float()
            layer.weight += added.T if isinstance(layer, Conv1D) else added
        for name, values in adapter.head.items():
            by_hand.get_parameter(name).copy_(torch.tensor(values))
        ours = logits(trainer, adapter)
        for other in (exported.eval(), by_hand.eval()):
            got = other(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            # fp32 rounds by 6e-8; sums of some hundred terms, in another order, through two blocks.
            assert torch.allclose(got, ours, atol=1e-4)
    assert not torch.allclose(ours, logits(trainer, random_adapter(trainer)), atol=1e-3)
