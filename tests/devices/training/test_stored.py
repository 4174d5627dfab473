"""A base that its file holds in 16 bits is not copied to 32, and trains to the same bits."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from devices.tasks.classification import Classification
from devices.training.file_map import lies_in, spans_of
from devices.training.trainer import TorchTrainer
from tests.devices.training.tiny_task import (
    TARGETS,
    make_config,
    make_job,
    make_trainer,
    random_adapter,
    save_model,
)


def rounded(directory: Path, other: Path, dtype: torch.dtype, held: torch.dtype) -> Path:
    """Copy a model with its numbers rounded to ``dtype``, in a file that holds them as ``held``."""
    shutil.copytree(directory, other)
    tensors = load_file(directory / "model.safetensors")
    changed = {name: values.to(dtype).to(held) for name, values in tensors.items()}
    save_file(changed, other / "model.safetensors", metadata={"format": "pt"})
    return other


def trainers(
    dataset: Classification, folder: Path, family: str, stored: torch.dtype, host: str
) -> tuple[TorchTrainer, TorchTrainer]:
    """Return trainers on the same numbers, from a file of ``stored`` and from one of fp32."""
    whole = save_model(folder / "whole", family)
    narrow = rounded(whole, folder / "narrow", stored, stored)
    wide = rounded(whole, folder / "wide", stored, torch.float32)
    made = (
        make_trainer(make_config(str(path), targets=TARGETS[family], dtype=host), dataset)
        for path in (narrow, wide)
    )
    one, other = made
    return one, other


@pytest.mark.parametrize(
    ("family", "stored", "host"),
    [
        ("bert", torch.bfloat16, "bf16"),
        ("llama", torch.bfloat16, "bf16"),
        ("gpt2", torch.float16, "bf16"),
        ("qwen2", torch.bfloat16, "fp32"),
    ],
    ids=str,
)
def test_a_file_of_16_bits_trains_as_the_same_numbers_in_32(
    dataset: Classification, tmp_path: Path, family: str, stored: torch.dtype, host: str
) -> None:
    narrow, wide = trainers(dataset, tmp_path, family, stored, host)
    for weight_format in ("fp32", "fp16", "int4"):
        given = {"weight_format": weight_format, "steps": 2}
        results = [one.train([make_job(one, **given)])[0] for one in (narrow, wide)]  # type: ignore[arg-type]
        assert results[0].adapter.digest == results[1].adapter.digest
        assert results[0].train_loss == results[1].train_loss
    adapter = random_adapter(narrow)
    assert narrow.evaluate(adapter) == wide.evaluate(adapter)
    for metric in ("wanda", "taylor"):
        np.testing.assert_array_equal(
            narrow.block_salience(metric),
            wide.block_salience(metric),  # type: ignore[arg-type]
        )


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/maps is Linux's")
def test_the_base_is_a_map_of_its_file_that_nothing_copies(
    dataset: Classification, tmp_path: Path
) -> None:
    directory = rounded(
        save_model(tmp_path / "whole", "llama"), tmp_path / "m", torch.bfloat16, torch.bfloat16
    )
    trainer = make_trainer(
        make_config(str(directory), targets=TARGETS["llama"], dtype="bf16"), dataset
    )
    result = trainer.train([make_job(trainer)])[0]
    trainer.evaluate(result.adapter)
    trainer.block_salience("wanda")
    spans = spans_of([directory / "model.safetensors"])
    layers = [layer for block in trainer._model.weights.blocks for layer in block.values()]
    assert len(layers) == 14
    for layer in layers:
        assert lies_in(layer.weight, spans)
        assert layer.is_map
        assert layer.packed.codes.data_ptr() == layer.weight.data_ptr()
        assert layer.packed.casts == []
