"""Trains a job by a loop of torch alone, beside which ours is held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from devices.training.batches import draw_batches
from devices.training.trainer import TorchTrainer
from devices.vocabulary.plan import Adapter
from devices.vocabulary.trainer import TrainingJob
from traces.arrays import IntArray


def train_plainly(
    trainer: TorchTrainer,
    job: TrainingJob,
    model: torch.nn.Module,
    inputs: Callable[[IntArray], dict[str, Any]],
    *,
    lengths: IntArray | None = None,
) -> list[float]:
    """Train the model in place on the batches of the job; return the loss of every step.

    ``inputs`` makes what transformers' own model is called with of the indices of a batch.
    ``lengths`` are the tokens of each example, where these are not the trainer's own.
    """
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=trainer._config.learning_rate,
        weight_decay=trainer._config.weight_decay,
    )
    drawn_seed, _ = np.random.SeedSequence(job.seed).generate_state(2)
    batches = draw_batches(
        job.examples,
        trainer._train_texts.lengths if lengths is None else lengths,
        steps=job.plan.local_steps,
        batch_size=job.plan.batch_size,
        rng=np.random.default_rng(drawn_seed),
        kind=trainer._config.batches,
    )
    losses = []
    for batch in batches:
        loss = model(**inputs(batch)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def assert_has_adapter(model: torch.nn.Module, adapter: Adapter) -> None:
    """Assert that the LoRA factors of a PEFT model are those of an adapter, each number within
    1e-5."""
    layers = [module for module in model.modules() if hasattr(module, "lora_A")]
    for layer, factors in zip(layers, adapter.factors.values(), strict=True):
        parts: Any = (layer.lora_A, layer.lora_B)
        a, b = (part["default"].weight.detach().numpy() for part in parts)
        np.testing.assert_allclose(factors.a, a, atol=1e-5)
        np.testing.assert_allclose(factors.b, b, atol=1e-5)
