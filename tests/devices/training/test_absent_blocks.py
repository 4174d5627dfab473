"""Training with blocks that are not on the device."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from devices.tasks.classification import Classification
from devices.training.trainer import TorchTrainer
from devices.vocabulary.plan import Adapter, Broadcast, ModuleKey
from devices.vocabulary.trainer import TrainingJob
from tests.devices.training.tiny_task import (
    TARGETS,
    make_config,
    make_job,
    make_trainer,
    random_adapter,
    save_model,
)
from tests.torture import some
from traces.arrays import BoolArray

NUM_BLOCKS = 3
KEPT = [(0,), (2,), (0, 1), (0, 2)]


def whole_job(trainer: TorchTrainer, activation_bits: int = 32) -> TrainingJob:
    return make_job(trainer, weight_format="int8", activation_bits=activation_bits)


def without_blocks(job: TrainingJob, kept: tuple[int, ...]) -> TrainingJob:
    """Return the job on the kept blocks, with the others absent."""
    plan = job.plan
    present = np.isin(np.arange(plan.num_blocks), kept)
    here = present[:, None, None]
    terms = replace(
        plan.terms,
        held=plan.terms.held & here,
        trained=plan.terms.trained & here,
        upload_bits=np.where(here, plan.terms.upload_bits, 0).astype(np.uint8),
    )
    formats = tuple(
        name if is_here else "absent"
        for name, is_here in zip(plan.weight_formats, present, strict=True)
    )
    return replace(job, plan=replace(plan, terms=terms, weight_formats=formats))


def keep_blocks(directory: Path, kept: tuple[int, ...], to: Path) -> Path:
    """Save a copy of a model that never had the other blocks."""
    to.mkdir()
    for file in directory.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    config = json.loads((to / "config.json").read_text("utf-8"))
    config["num_hidden_layers"] = len(kept)
    (to / "config.json").write_text(json.dumps(config), "utf-8")
    tensors = {}
    for name, values in load_file(to / "model.safetensors").items():
        found = re.search(r"layers?\.(\d+)\.", name)
        if found is None:
            tensors[name] = values
        elif (block := int(found[1])) in kept:
            place = found[0].replace(found[1], str(kept.index(block)))
            tensors[name.replace(found[0], place)] = values
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


def keep_factors(adapter: Adapter, kept: tuple[int, ...]) -> Adapter:
    factors = {
        ModuleKey(kept.index(key.block), key.module): values
        for key, values in adapter.factors.items()
        if key.block in kept
    }
    return replace(adapter, factors=factors)


@pytest.mark.parametrize("activation_bits", [32, 4])
@pytest.mark.parametrize("kept", some([(kept,) for kept in KEPT], 3))
@pytest.mark.parametrize("family", some(("bert", "llama", "roberta"), 2))
def test_training_without_blocks_is_training_the_model_that_never_had_them(
    family: str,
    kept: tuple[int, ...],
    activation_bits: int,
    tmp_path: Path,
    dataset: Classification,
) -> None:
    directory = save_model(tmp_path / "whole", family, NUM_BLOCKS)
    compact = keep_blocks(directory, kept, tmp_path / "compact")
    whole, small = (
        make_trainer(make_config(str(path), targets=TARGETS[family]), dataset)
        for path in (directory, compact)
    )
    job = without_blocks(whole_job(whole, activation_bits), kept)
    alike = TrainingJob(
        job.plan.compact(),
        Broadcast(0, keep_factors(job.broadcast.adapter, kept)),
        job.examples,
        job.seed,
    )
    (got,), (expected,) = whole.train([job]), small.train([alike])
    assert got.train_loss == expected.train_loss
    assert keep_factors(got.adapter, kept).digest == expected.adapter.digest
    start = job.broadcast.adapter
    for key, (a, b) in got.adapter.factors.items():
        is_same = np.array_equal(a, start.factors[key].a), np.array_equal(b, start.factors[key].b)
        assert is_same == ((False, False) if key.block in kept else (True, True))


def run_order(trainer: TorchTrainer, present: BoolArray) -> list[int]:
    """Return the blocks that a forward pass without the absent ones goes through, in order."""
    order: list[int] = []
    handles = [
        parts.block.register_forward_hook(lambda *_, block=block: order.append(block))
        for block, parts in enumerate(trainer._model.blocks)
    ]
    batch = trainer._train_texts.batch(np.arange(4), trainer.host.device)
    with trainer._model.only(present), torch.no_grad():
        trainer._model.logits(batch)
    for handle in handles:
        handle.remove()
    return order


def test_no_operator_of_an_absent_block_runs(family_trainer: TorchTrainer) -> None:
    assert run_order(family_trainer, np.array([True, True])) == [0, 1]
    assert run_order(family_trainer, np.array([False, True])) == [1]
    assert run_order(family_trainer, np.array([True, False])) == [0]


def test_the_global_model_has_all_its_blocks_whatever_was_trained_before(
    family_trainer: TorchTrainer,
) -> None:
    adapter = random_adapter(family_trainer)
    before = family_trainer.evaluate(adapter)
    family_trainer.train([without_blocks(whole_job(family_trainer), (0,))])
    assert family_trainer.evaluate(adapter) == before


def test_a_job_that_breaks_off_gives_the_absent_blocks_back(tiny: TorchTrainer) -> None:
    with pytest.raises(RuntimeError, match="torn"), tiny._model.only(np.array([True, False])):
        raise RuntimeError("torn")
    assert run_order(tiny, np.array([True, True])) == [0, 1]
