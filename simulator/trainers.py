"""Who trains for a run: on this process or several, behind what was trained before."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from devices.plan import Adapter
from devices.trainer import ChunkedTrainer, NullTrainer, Trainer
from simulator.checkpoint import CheckpointedTrainer
from simulator.config import RunConfig
from simulator.executor import PooledTrainer, loading
from simulator.experiment import ConfigError
from simulator.provenance import versions
from simulator.result_cache import CountedTrainer, ResultCache, code_sha256
from simulator.world import World


class Trainers:
    """Keeps the trainer of the last run, because the next one often needs the same.

    ``workers`` processes train at once. Use as a context manager: it ends them. ``cache`` is where
    results are kept from run to run.
    """

    def __init__(self, workers: int, cache: ResultCache | None = None) -> None:
        self._workers = workers
        self.cache = cache
        self._key = ""
        self._trainer: Trainer | None = None

    def __enter__(self) -> Trainers:
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self._trainer, PooledTrainer):
            self._trainer.close()
        self._trainer = None

    def get(self, config: RunConfig, world: World) -> Trainer:
        """A trainer for this run's model, data and training settings."""
        key = training_context(config, world)
        if self._trainer is None or key != self._key:
            self.__exit__()
            self._trainer, self._key = self._make(config, world), key
        return self._trainer

    def _make(self, config: RunConfig, world: World) -> Trainer:
        if config.training == "none":
            return NullTrainer(world.model.num_blocks)
        host_of(config)
        factory = _torch_trainer(config, world)
        if self._workers > 1:
            return PooledTrainer(factory, self._workers)
        with loading():
            return factory()


def _torch_trainer(config: RunConfig, world: World) -> Callable[[], ChunkedTrainer]:
    from devices.training.trainer import TorchTrainer, TrainingConfig  # torch takes seconds

    settings = config.training
    assert settings != "none"
    training = TrainingConfig(
        model=config.task.model,
        targets=config.task.targets,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        max_length=config.task.max_length,
        dtype=settings.dtype,
        compute=settings.compute,
        attention=settings.attention,
        eval_examples=config.evaluation.examples,
        max_loss=settings.max_loss,
    )
    return partial(TorchTrainer, training, world.data)


def training_context(config: RunConfig, world: World) -> str:
    """Everything beside a job that its result depends on."""
    plain = config.resolved()
    parts = {key: plain[key] for key in ("task", "training")}
    parts |= {"examples": config.evaluation.examples, "data": world.data.sha256}
    parts |= {"model": world.source.files_sha256}
    if config.training != "none":
        parts |= {"host": host_of(config), "versions": versions()}
    return json.dumps(parts, sort_keys=True)


def host_of(config: RunConfig) -> tuple[str, str]:
    """Processor and dtype that ``auto`` comes to. Raises ConfigError where there is no such GPU."""
    from devices.training.host import choose_host  # torch takes seconds

    settings = config.training
    assert settings != "none"
    try:
        host = choose_host(settings.compute, settings.dtype)
    except ValueError as error:
        raise ConfigError([str(error)], "this machine") from None
    return host.device.type, host.dtype_name


def export_adapter(adapter: Adapter, config: RunConfig, folder: Path) -> None:
    """Write what was trained as PEFT reads it."""
    from devices.training.export import save_peft

    save_peft(adapter, folder / "adapter", config.task.model)


@dataclass(frozen=True, eq=False)
class Remembering:
    """A trainer behind what earlier runs have trained, and what this run had when it broke."""

    trainer: Trainer
    asked: CountedTrainer | None = None
    trained: CountedTrainer | None = None  # what of it was new

    @property
    def savings(self) -> dict[str, int]:
        """How many trainings were asked for, and how many of them were there already."""
        if self.asked is None or self.trained is None:
            return {}
        num_asked, num_trained = self.asked.num_jobs, self.trained.num_jobs
        return {"num_trainings": num_asked, "num_trainings_reused": num_asked - num_trained}


def remembering(
    trainer: Trainer,
    context: str,
    checkpoint: Path,
    *,
    cache: ResultCache | None,
    warn: Callable[[str], None],
) -> Remembering:
    """The trainer, asked only for what neither ``checkpoint`` nor ``cache`` holds."""
    trained = CountedTrainer(trainer)
    kept: Trainer = trained
    if cache:
        kept = CheckpointedTrainer(kept, cache.folder, context + code_sha256(), warn=warn)
    asked = CountedTrainer(CheckpointedTrainer(kept, checkpoint, context, warn=warn))
    return Remembering(asked, asked, trained)
