"""Makes the job that benchmarks of a single step train: LoRA r=8 in every block, unpacked."""

from __future__ import annotations

import numpy as np

from devices.architectures import model_spec
from devices.models.catalog import resolve
from devices.models.heads import text_head
from devices.models.spec import ModelSpec
from devices.tasks.classification import Classification
from devices.training.config import TrainingConfig
from devices.training.trainer import TorchTrainer
from devices.vocabulary.plan import Broadcast, TermGrid, TrainingPlan
from devices.vocabulary.trainer import TrainingJob

RANK = 8


def make_trainer(config: TrainingConfig, dataset: Classification) -> TorchTrainer:
    """Return a trainer on the model that ``config`` names, as a run makes it."""
    source = resolve(config.model)
    spec = model_spec(
        source, config.targets, head=text_head(dataset.num_classes), attention=config.attention
    )
    return TorchTrainer(config, dataset, source=source, spec=spec)


def full_depth_job(
    spec: ModelSpec, examples: np.ndarray, *, steps: int, batch_size: int
) -> TrainingJob:
    """Return the job of device 0 on these examples."""
    plan = TrainingPlan(
        device_id=0,
        terms=TermGrid.top_blocks(spec.grid_shape(RANK), spec.num_blocks),
        weight_formats=("fp32",) * spec.num_blocks,
        activation_bits=(32,) * spec.num_blocks,
        local_steps=steps,
        batch_size=batch_size,
    )
    adapter = spec.initial_adapter(RANK, 2.0 * RANK, np.random.default_rng(0))
    return TrainingJob(plan, Broadcast(0, adapter), examples, seed=0)
