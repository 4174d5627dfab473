"""Makes the trainers of runs, in this process or several; no result is trained twice."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol, TypeAlias, runtime_checkable

from safetensors import SafetensorError

from devices.architectures import model_spec
from devices.models.catalog import MODELS, ModelSource, resolve
from devices.models.spec import ModelSpec
from devices.options import HostCompute, HostDtype
from devices.tasks.registry import scored_on_training_set, smoothed
from devices.tasks.task import Task
from devices.training.config import TrainingConfig
from devices.vocabulary.plan import Adapter
from devices.vocabulary.trainer import (
    ChunkedTrainer,
    Evaluation,
    HostNames,
    NullTrainer,
    Trainer,
    TrainingError,
)
from simulator.config.experiment import ConfigError
from simulator.config.schema import RunConfig
from simulator.engine.federation import BeginEvaluation, at_once
from simulator.log.provenance import versions
from simulator.workers.context import Context, tokens_key
from simulator.workers.kept_results import Checkpoint, CheckpointedTrainer
from simulator.workers.kept_tokens import KeptTokens
from simulator.workers.pool import Backend, Pool, available_cores
from simulator.workers.processes import LocalProcesses
from simulator.workers.result_cache import ResultCache, code_sha256
from simulator.workers.shared_trainer import SharedTrainer
from simulator.world.build import World
from traces.canonical import canonical
from traces.text import unknown

EXECUTORS = ("processes", "ray")
_OwnTrainer: TypeAlias = NullTrainer | ChunkedTrainer | SharedTrainer


@runtime_checkable
class TrainsMeanwhile(Trainer, Protocol):
    """A trainer of this kind can train while it evaluates."""

    def begin(
        self, evaluate: Callable[[Adapter], Evaluation], adapter: Adapter
    ) -> Future[Evaluation]: ...


class Trainers:
    """Trainers keeps the trainer of the last run, since the next one often needs the same.

    ``workers`` train at once, as many as there is room for if None; one of ``processes`` is this
    process itself. Use as a context manager: it ends them. ``cache`` is where results are kept from
    run to run. Raises ConfigError for an executor that is not to be had.
    """

    def __init__(
        self,
        workers: int | None = None,
        cache: ResultCache | None = None,
        *,
        executor: str = "processes",
    ) -> None:
        check_executor(executor)
        self._workers, self._executor = workers, executor
        self.cache = cache
        self._key = ""
        self._scratch = ExitStack()
        self._trainer: _OwnTrainer | None = None

    def __enter__(self) -> Trainers:
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self._trainer, SharedTrainer):
            self._trainer.close()
        self._scratch.close()
        self._trainer = None

    def get(self, config: RunConfig, world: World) -> Trainer:
        """Return a trainer for this run's model, data and training settings."""
        key = _settings(config, world)
        if self._trainer is None or key != self._key:
            self.__exit__()
            self._trainer, self._key = self._make(config, world), key
        return self._trainer

    def complaints(self) -> list[str]:
        """Return what went wrong with the cache since the last call, in words."""
        return self.cache.complaints() if self.cache else []

    def try_model(self, config: RunConfig, world: World) -> None:
        """Load the model and turn all texts into its tokens, as a run would.

        Nothing is done where nothing can be wrong: a model whose files are known by their hash, and
        texts that are cut where they are too long, as prompts are not. Raises TrainingError.
        """
        may_fail = config.task.model not in MODELS or "prompt" in world.task.columns
        if config.training != "none" and may_fail:
            self.get(config, world)

    @property
    def host_names(self) -> HostNames | None:
        """Return what the trainer computes with; None for timing only."""
        return None if isinstance(self._trainer, NullTrainer | None) else self._trainer.host_names

    def export(self, adapter: Adapter, world: World, folder: Path) -> None:
        """Write the adapter in PEFT's format. Raises OSError where it cannot be written."""
        save = partial(
            _save,
            adapter=adapter,
            folder=folder / "adapter",
            source=world.source,
            spec=world.model,
        )
        if isinstance(self._trainer, SharedTrainer) and self._executor == "processes":
            self._trainer.have_done(save)  # a worker has imported peft, which takes seconds
        else:
            save(self._trainer)

    def _make(self, config: RunConfig, world: World) -> _OwnTrainer:
        if config.training == "none":
            return NullTrainer(world.model.num_blocks)
        if self._executor == "ray":
            from simulator.workers.ray_actors import RayCluster  # Ray is an optional dependency

            host = _host_here(config)  # resolves "auto" here, since workers may differ
            make = _torch_trainer(config, world, self._tokens(config, world), host)
            cluster = RayCluster(make, self._workers, gpus_each=int(host.compute == "cuda"))
            return self._shared(cluster, world.task)
        make = _torch_trainer(config, world, self._tokens(config, world))
        if self._has_processes:
            return self._shared(LocalProcesses(make), world.task)
        return make()

    @property
    def _has_processes(self) -> bool:
        """Return True if other processes of this machine train, rather than this process."""
        return self._executor == "processes" and (self._workers or available_cores()) > 1

    def _tokens(self, config: RunConfig, world: World) -> KeptTokens:
        """Say where texts are kept as tokens: in the cache, else for as long as they are used."""
        key = tokens_key(config, world) + code_sha256()
        if self.cache:
            return KeptTokens(self.cache.folder, key)
        if not self._has_processes:
            return KeptTokens(None, key)
        return KeptTokens(
            Path(self._scratch.enter_context(TemporaryDirectory(prefix="fedclock-"))), key
        )

    def _shared(self, backend: Backend, task: Task) -> SharedTrainer:
        return SharedTrainer(Pool(backend, self._workers or backend.num_free), task.evaluation)


def check_executor(name: str) -> None:
    """Raise ConfigError for an executor that there is not, or whose library is missing."""
    if name not in EXECUTORS:
        raise ConfigError([unknown("an executor", name, EXECUTORS)], "--executor")
    if name == "ray":
        try:
            import_module("ray")
        except ImportError as error:
            problem = f"ray needs the library of that name ({error}): pip install 'fedclock[ray]'"
            raise ConfigError([problem], "--executor") from None


def _torch_trainer(
    config: RunConfig, world: World, tokens: KeptTokens, host: HostNames | None = None
) -> Callable[[], ChunkedTrainer]:
    """Return what makes a trainer, which computes as ``host`` says, else with what it finds."""
    settings = config.training
    assert settings != "none"
    training = TrainingConfig(
        model=config.task.model,
        targets=config.task.targets,
        max_length=config.task.max_length,
        eval_examples=config.evaluation.examples,
        revision=config.task.revision,
        **vars(settings) | ({"dtype": host.dtype, "compute": host.compute} if host else {}),
    )
    expected = _software() | {"the model's files": world.source.files_sha256}
    task = smoothed(world.task, settings.label_smoothing)
    if config.evaluation.own_share:
        task = scored_on_training_set(task)
    return partial(_make_here, training, task, tokens, expected)


def _software() -> dict[str, str]:
    return {"FedClock": code_sha256(), **versions()}


@contextmanager
def loading() -> Iterator[None]:
    """Raise TrainingError, in words, where a model cannot be loaded in this block."""
    try:
        yield
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainingError(f"the model cannot be loaded: {first_line}") from None


@loading()
def _make_here(
    training: TrainingConfig, task: Task, tokens: KeptTokens, expected: Mapping[str, str]
) -> ChunkedTrainer:
    """Make a trainer where it is to train.

    Raises TrainingError where the model cannot be loaded, there is no such GPU, or this process
    would train something else than the one that asks.
    """
    from devices.training.trainer import TorchTrainer

    _host_names(training.compute, training.dtype)  # a missing GPU is reported before the model
    source = resolve(training.model, training.revision)
    head = task.head(source.config)
    spec = model_spec(source, training.targets, head=head, attention=training.attention)
    trainer = TorchTrainer(training, task, source=source, spec=spec, get_tokens=tokens.get)
    here = _software() | {"the model's files": trainer.source.files_sha256}
    if differing := [name for name in expected if here.get(name) != expected[name]]:
        raise TrainingError(
            "a worker must have what the process that starts it has, but "
            f"{', '.join(differing)} differ on {platform.node()}"
        )
    return trainer


def _host_here(config: RunConfig) -> HostNames:
    settings = config.training
    assert settings != "none"
    return _host_names(settings.compute, settings.dtype)


def _host_names(compute: HostCompute, dtype: HostDtype) -> HostNames:
    """Return what training computes with. Raises TrainingError where there is no such GPU."""
    from devices.training.host import choose_host

    try:
        return choose_host(compute, dtype).names
    except ValueError as error:
        raise TrainingError(f"{error} ({platform.node()})") from None


def _settings(config: RunConfig, world: World) -> str:
    """Return, as text, everything that a trainer is made from on this host."""
    plain = config.resolved()
    parts = {key: plain[key] for key in ("task", "training")}
    parts |= {"examples": config.evaluation.examples, "data": world.task.data.sha256}
    parts |= {"own tests": config.evaluation.own_share > 0}
    return canonical({**parts, "model": world.source.files_sha256})


def _save(
    _: object, *, adapter: Adapter, folder: Path, source: ModelSource, spec: ModelSpec
) -> None:
    """Write an adapter into a folder in PEFT's format.

    This is a task for a worker, whose state it does not need.
    """
    from devices.training.export import save_peft

    save_peft(adapter, folder, source=source, spec=spec)


@dataclass(frozen=True, eq=False)
class Remembering:
    """This record holds a trainer that trains nothing twice, and the counters of its jobs."""

    trainer: Trainer
    asked: CheckpointedTrainer | None = None
    asking: CheckpointedTrainer | None = None  # passes on the jobs that were not kept
    begin: BeginEvaluation = at_once

    @property
    def savings(self) -> dict[str, int]:
        """Return how many trainings were asked for, how many of them reused, how many stacked."""
        if self.asked is None or self.asking is None:
            return {}
        return {
            "num_trainings": self.asked.num_asked,
            "num_trainings_reused": self.asked.num_asked - self.asking.num_passed_on,
            "num_trainings_stacked": self.asked.num_stacked,
        }


def remembering(
    trainer: Trainer,
    context: Context,
    checkpoint: Path,
    *,
    cache: ResultCache | None,
    warn: Callable[[str], None],
) -> Remembering:
    """Return the trainer so that it is asked only for what no ``checkpoint`` or ``cache`` holds."""
    cached = cache and CheckpointedTrainer(trainer, cache, context.with_text(code_sha256()))
    asked = CheckpointedTrainer(cached or trainer, Checkpoint(checkpoint, warn), context)
    begin = trainer.begin if isinstance(trainer, TrainsMeanwhile) else at_once
    return Remembering(asked, asked, cached or asked, begin)
