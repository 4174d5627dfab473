"""One run, from its config to its folder. The only place that knows every concrete class."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from algorithms.robust import Robustness
from devices.partition import expected_accuracies
from devices.plan import Adapter
from devices.trainer import ChunkedTrainer, NullTrainer, Trainer
from simulator.checkpoint import CheckpointedTrainer
from simulator.conditions import fault_schedules
from simulator.config import RunConfig
from simulator.executor import PooledTrainer, loading
from simulator.experiment import ConfigError
from simulator.fault_config import FaultsConfig
from simulator.federation import Federation, Stop
from simulator.manifest import (
    FinishedMeanwhileError,
    RunFolderError,
    Status,
    check_same_config,
    is_finished,
)
from simulator.own_strategy import source_of
from simulator.progress import Reporter, Tee
from simulator.provenance import provenance, versions
from simulator.records import DeviceRecord
from simulator.result_cache import CountedTrainer, ResultCache, code_sha256
from simulator.server import Server, simulate
from simulator.store import RunFolder, remove_checkpoint
from simulator.tally import duration
from simulator.world import World, build_world, make_view, rehearse
from simulator.writers import RunFacts, RunWriter, WriterSpec, open_writers


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
        _host(config)
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
        parts |= {"host": _host(config), "versions": versions()}
    return json.dumps(parts, sort_keys=True)


def _host(config: RunConfig) -> tuple[str, str]:
    """Processor and dtype that ``auto`` comes to. Raises ConfigError where there is no such GPU."""
    from devices.training.host import choose_host

    settings = config.training
    assert settings != "none"
    try:
        host = choose_host(settings.compute, settings.dtype)
    except ValueError as error:
        raise ConfigError([str(error)], "this machine") from None
    return host.device.type, host.dtype_name


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run that has been checked, and can begin."""

    config: RunConfig
    folder: Path
    world: World
    notes: tuple[str, ...]  # what a person should know beforehand
    is_finished: bool


def prepare(config: RunConfig, folder: Path, where: str) -> Prepared:
    """Check everything about a run that can be checked; nothing is written.

    Raises ConfigError or RunFolderError, the latter also for a folder with a finished run of this
    config whose traces, data or model were others.
    """
    check_same_config(folder, config.resolved())
    world = build_world(config, where)
    said = tuple(notes(config, world, where))
    return Prepared(config, folder, world, said, is_finished(folder, _inputs(world)))


def run(
    prepared: Prepared,
    *,
    trainers: Trainers,
    report: Reporter,
    writers: Sequence[WriterSpec] = (),
) -> Path:
    """Simulate into the folder, and return it; a finished run is left as it is.

    Raises UserError where a writer cannot be opened.
    """
    config, folder, world = prepared.config, prepared.folder, prepared.world
    if prepared.is_finished:
        remove_checkpoint(folder)
        report.step(f"{config.label}: finished before, kept ({folder})")
        return folder
    for note in prepared.notes:
        report.step(note)
    report.step(f"{config.label}: loading {config.task.model}")
    trainer = trainers.get(config, world)
    manifest = _manifest(config, world)
    began = time.perf_counter()
    try:
        store = _open_folder(prepared, manifest)
    except FinishedMeanwhileError as finished:
        is_finished(folder, _inputs(world))  # of these inputs, or raises
        report.step(f"{config.label}: {finished}, kept")
        return folder
    counts: Counts | None = None
    if config.training != "none":
        context = training_context(config, world)
        remembering = partial(_remembering, cache=trainers.cache, store=store, warn=report.step)
        trainer, counts = remembering(trainer, context)
    logs: list[RunWriter] = [store]
    try:
        logs += open_writers(writers, RunFacts(folder, config.resolved(), manifest), report.step)
        report.start(config.label, config.stop.rounds)
        server = simulate(federation_of(config, world, trainer), Tee([*logs, report]))
        outcome = _outcome(server, time.perf_counter() - began)
        if config.training != "none":
            with store.writing():
                _export(server.state.adapter, config, folder)
        if config.faults != FaultsConfig():
            store.faults(fault_schedules(world.faults, server.now_s))
        if server.by_class:
            shards = (world.fleet.shards[device_id] for device_id in range(len(world.fleet)))
            store.accuracies(expected_accuracies(shards, world.data.train_labels, server.by_class))
        outcome |= _savings(counts)
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        with suppress(RunFolderError):  # a full disk is what stopped it, and has been said
            _close(logs, "interrupted" if interrupted else "failed", {"error": repr(error)})
        report.finish(f"{config.label}: stopped; what is done is kept in {folder}")
        raise
    said = f"{config.label}: its tables cannot be written"
    try:
        _close(logs, "done", outcome)
        if trainers.cache:
            trainers.cache.trim()
        said = (
            f"{config.label}: done in {duration(outcome['wall_s'])}, "
            f"simulated {duration(outcome['simulated_s'])}{_saved(outcome)} ({folder})"
        )
    finally:
        report.finish(said)
    return folder


Counts = tuple[CountedTrainer, CountedTrainer]
"""What was asked for, and what of it had to be trained."""


def _remembering(
    trainer: Trainer,
    context: str,
    *,
    cache: ResultCache | None,
    store: RunFolder,
    warn: Callable[[str], None],
) -> tuple[Trainer, Counts]:
    """The trainer behind what earlier runs have trained, and what this run had when it broke."""
    trained = CountedTrainer(trainer)
    kept: Trainer = trained
    if cache:
        kept = CheckpointedTrainer(kept, cache.folder, context + code_sha256(), warn=warn)
    asked = CountedTrainer(CheckpointedTrainer(kept, store.checkpoint, context, warn=warn))
    return asked, (asked, trained)


def _saved(outcome: Mapping[str, Any]) -> str:
    reused = outcome.get("num_trainings_reused")
    return f", reused {reused} of {outcome['num_trainings']} trainings" if reused else ""


def _savings(counts: Counts | None) -> dict[str, int]:
    if counts is None:
        return {}
    asked, trained = (counted.num_jobs for counted in counts)
    return {"num_trainings": asked, "num_trainings_reused": asked - trained}


def _open_folder(prepared: Prepared, manifest: Mapping[str, Any]) -> RunFolder:
    """The run folder, with what is known before the first event."""
    config, folder = prepared.config, prepared.folder
    store = RunFolder(folder, config.resolved(), manifest)
    store.fleet(DeviceRecord.columns(prepared.world.fleet))
    if source := source_of(config.strategy):  # config.yaml names it by its place beside it
        with store.writing():
            (folder / source.path.name).write_bytes(source.text)
    return store


def _close(logs: Sequence[RunWriter], status: Status, outcome: Mapping[str, Any]) -> None:
    for log in logs:
        log.close(status, outcome)


def notes(config: RunConfig, world: World, where: str) -> list[str]:
    """What a person should know before the run. Raises ConfigError where it cannot be planned."""
    idle = rehearse(config, world, where)
    if not idle:
        return []
    return [
        f"{config.label}: {len(idle)} of {len(world.fleet)} devices cannot hold any plan of this "
        f"strategy and will sit out: {', '.join(map(str, idle[:10]))}{', ...' * (len(idle) > 10)}"
    ]


def federation_of(config: RunConfig, world: World, trainer: Trainer) -> Federation:
    """Everything that the simulation of this config is made of."""
    stop, aggregation = config.stop, config.aggregation
    return Federation(
        seed=config.seed,
        fleet=world.fleet,
        view=make_view(config, world, trainer),
        strategy=config.strategy,
        pacing=config.pacing,
        selection=config.selection,
        trainer=trainer,
        evaluate_every=config.evaluation.every,
        stop=Stop(stop.rounds, stop.simulated_s or math.inf, stop.accuracy or math.inf),
        faults=world.faults,
        shared_links=world.shared_links,
        when_offline=config.fleet.when_offline,
        when_out_of_memory=config.fleet.when_out_of_memory,
        when_diverged="stop" if config.training == "none" else config.training.when_diverged,
        robustness=Robustness(
            aggregation.max_norm or math.inf,
            aggregation.clip_norm or math.inf,
            aggregation.trim_share,
        ),
    )


def _export(adapter: Adapter, config: RunConfig, folder: Path) -> None:
    from devices.training.export import save_peft

    save_peft(adapter, folder / "adapter", config.task.model)


def _manifest(config: RunConfig, world: World) -> dict[str, Any]:
    own = source_of(config.strategy)
    return {
        "experiment": config.name,
        "label": config.label,
        "strategy": config.strategy.kind,
        "strategy_sha256": own.sha256 if own else None,
        "seed": config.seed,
        "config_hash": config.hash,
        **_inputs(world),
        "training_dtype": None if config.training == "none" else _host(config)[1],
        **provenance(),
    }


def _inputs(world: World) -> dict[str, Any]:
    """What the run is made from beside its config: two runs of one config may differ in it."""
    data, source = world.data, world.source
    return {
        "conditions_hash": world.conditions_hash,
        "model": {
            "name": source.name,
            "sha256": source.sha256,
            "files_sha256": source.files_sha256,
            "licence": source.licence,
            "pinned": source.pinned,
        },
        "data": {
            "name": data.name,
            "sha256": data.sha256,
            "source": data.source,
            "num_train": len(data.train_texts),
            "num_test": len(data.test_texts),
            "num_classes": data.num_classes,
            "majority_share": data.majority_share,
        },
    }


def _outcome(server: Server, wall_s: float) -> dict[str, Any]:
    return {
        "adapter_sha256": server.state.adapter.digest,
        "num_rounds": server.num_rounds,
        "simulated_s": server.now_s,
        "final_accuracy": None if math.isnan(server.accuracy) else server.accuracy,
        "wall_s": round(wall_s, 3),
    }
