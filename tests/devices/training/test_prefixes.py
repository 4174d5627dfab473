"""An evaluation begins above the blocks that have not changed, and comes to the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from devices.tasks.classification import Classification
from devices.training.prefixes import KeptPrefixes, block_digests
from devices.training.trainer import TorchTrainer
from devices.vocabulary.adapter import Adapter, Factors, Merged, ModuleKey
from tests.devices.training.tiny_task import (
    TARGETS,
    make_config,
    make_trainer,
    random_adapter,
    save_model,
)

NUM_BLOCKS = 3


def changed(adapter: Adapter, *, from_block: int, by: float) -> Adapter:
    """Return an adapter whose factors differ from this block on."""
    factors = {
        key: Factors(a, (b + by).astype(np.float32)) if key.block >= from_block else Factors(a, b)
        for key, (a, b) in adapter.factors.items()
    }
    return replace(adapter, factors=factors)


def count_passes(trainer: TorchTrainer) -> list[int]:
    """Return a count for each block that rises with each of its forward passes."""
    counts = [0] * NUM_BLOCKS
    for k, parts in enumerate(trainer._model.blocks):
        plain = type(parts.block).forward

        def forward(*args: object, _k: int = k, _plain: object = plain, **named: object) -> object:
            counts[_k] += 1
            return _plain(*args, **named)  # type: ignore[operator]

        parts.block.__class__ = type("Counted", (type(parts.block),), {"forward": forward})
    return counts


@pytest.mark.parametrize(
    ("family", "dtype"), [("bert", "fp32"), ("llama", "bf16"), ("gpt2", "fp32")]
)
def test_evaluations_are_those_of_a_trainer_that_keeps_nothing(
    dataset: Classification, tmp_path: Path, family: str, dtype: str
) -> None:
    directory = save_model(tmp_path / "model", family, NUM_BLOCKS)
    config = make_config(str(directory), targets=TARGETS[family], dtype=dtype)
    trainer, plain = make_trainer(config, dataset), make_trainer(config, dataset)
    plain._prefixes = KeptPrefixes(plain._model, max_bytes=0)
    counts, num_chunks = count_passes(trainer), trainer.num_chunks
    start = random_adapter(trainer)
    adapters = [changed(start, from_block=2, by=0.01 * k) for k in range(4)]
    passes = []
    for adapter in [*adapters, changed(start, from_block=1, by=0.5), adapters[0]]:
        before = list(counts)
        assert trainer.evaluate(adapter) == plain.evaluate(adapter)
        passes.append(
            [(now - then) // num_chunks for now, then in zip(counts, before, strict=True)]
        )
    whole, top, upper = [1, 1, 1], [0, 0, 1], [0, 1, 1]
    # The second pass finds which blocks have changed, and keeps the output of those below.
    assert passes[:4] == [whole, whole, top, top]
    assert passes[4:] == [whole, upper]


def test_memory_for_what_is_kept_is_bounded(tiny: TorchTrainer) -> None:
    start = random_adapter(tiny)
    kept = KeptPrefixes(tiny._model)
    one = tiny._test_texts.batch(np.arange(8), tiny._model.host.device)
    for most, count in ((0, 0), (8 * one.input_ids.shape[1] * 32 * 4, 1)):
        kept = KeptPrefixes(tiny._model, max_bytes=most)
        for chunk in range(3):
            for by in (0.0, 0.1):
                with kept.reused(chunk, changed(start, from_block=1, by=by)):
                    tiny._model.logits(one)
        assert len(kept._kept) == count


def test_what_is_merged_into_a_block_changes_it_alone(tiny: TorchTrainer) -> None:
    start = random_adapter(tiny)
    product = Factors(np.ones((1, 32), np.float32), np.ones((32, 1), np.float32))
    merged = replace(start, merged=Merged({ModuleKey(1, "query"): product}))
    one, other = (block_digests(adapter, 2) for adapter in (start, merged))
    assert [a == b for a, b in zip(one, other, strict=True)] == [True, False]
