"""Carries out one run, from its config to its folder: this module knows all classes."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from algorithms.merging.privacy import WithPrivacy
from algorithms.merging.server_optimizers import WithServerOptimizer
from algorithms.strategy import ServerState, Strategy
from devices.datasets.partition import expected_scores
from devices.options import TrainingOptions
from devices.tasks.task import Metric
from devices.vocabulary.trainer import HostNames, OwnTest, Trainer
from simulator.config.faults import FaultsConfig
from simulator.config.own_strategy import source_of
from simulator.config.paths import seen_from
from simulator.config.schema import RunConfig
from simulator.engine.federation import Federation
from simulator.engine.rules import Rules
from simulator.engine.seeds import stream
from simulator.engine.server import Server, simulate
from simulator.log.manifest import FinishedMeanwhileError, RunFolderError, Status, is_finished
from simulator.log.progress import Reporter
from simulator.log.progress_state import duration
from simulator.log.protocol import Log
from simulator.log.provenance import provenance
from simulator.log.records import DeviceRecord
from simulator.log.run_folder import RunFolder, refresh, remove_checkpoint
from simulator.log.writers import RunFacts, RunWriter, WriterSpec, open_writers
from simulator.runs.preparation import Prepared, inputs_of
from simulator.workers.context import context_of
from simulator.workers.trainers import Remembering, Trainers, remembering
from simulator.world.build import World
from simulator.world.one_place import OfOnePlace, charged_profile, in_one_place
from simulator.world.private import spent_privacy
from simulator.world.recorded import fault_schedules
from traces.text import without_folders


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
    config, folder, inputs = prepared.config, prepared.folder, inputs_of(prepared.world)
    if prepared.is_finished:
        remove_checkpoint(folder)
        refresh(folder, config.read_alone)
        report.step(f"{config.label}: finished before, kept ({folder})")
        return folder
    for note in (*prepared.notes, *trainers.complaints()):
        report.step(note)
    report.step(f"{config.label}: loading {config.task.model}")
    logging.getLogger("fedclock").info(
        "%s: writes to %s, conditions %.8s", config.label, folder, prepared.world.conditions_hash
    )
    trainer = trainers.get(config, prepared.world)
    manifest = _manifest(prepared, inputs, trainers.host_names)
    try:
        store = _open_folder(prepared, manifest)
    except FinishedMeanwhileError as finished:
        is_finished(folder, inputs)  # raises if that run was made from other inputs
        report.step(f"{config.label}: {finished}, kept")
        return folder
    logs: list[RunFolder | RunWriter] = [store]
    try:
        logs += open_writers(writers, RunFacts(folder, config.resolved(), manifest), report.step)
        remembered = _remembered(prepared, trainer, store, trainers=trainers, warn=report.step)
        report.start(config.label, config.stop.rounds)
        outcome = _simulated(prepared, remembered, store, trainers=trainers, logs=[*logs, report])
    except BaseException as error:
        _close_broken(logs, error)
        report.finish(f"{config.label}: stopped; what is done is kept in {folder}")
        raise
    _close_done(prepared, logs, outcome, trainers=trainers, report=report)
    return folder


def _open_folder(prepared: Prepared, manifest: Mapping[str, Any]) -> RunFolder:
    """Open the run folder and write what is known before the first event."""
    config, folder = prepared.config, prepared.folder
    store = RunFolder(folder, config.resolved(), manifest)
    store.fleet(DeviceRecord.columns(prepared.world.fleet))
    if source := source_of(config.strategy):  # config.yaml names this copy beside it
        with store.writing():
            (folder / source.path.name).write_bytes(source.text)
    return store


def _remembered(
    prepared: Prepared,
    trainer: Trainer,
    store: RunFolder,
    *,
    trainers: Trainers,
    warn: Callable[[str], None],
) -> Remembering:
    """Return the trainer so that it is not asked for what was trained before."""
    if prepared.config.training == "none":
        return Remembering(trainer)
    context = context_of(prepared.config, prepared.world, trainers.host_names)
    return remembering(trainer, context, store.checkpoint, cache=trainers.cache, warn=warn)


def _simulated(
    prepared: Prepared,
    remembered: Remembering,
    store: RunFolder,
    *,
    trainers: Trainers,
    logs: Sequence[Log],
) -> dict[str, Any]:
    """Simulate, write what is known at the end, and return it for the manifest."""
    config, world = prepared.config, prepared.world
    began = time.perf_counter()
    federation = federation_of(config, world, remembered.trainer)
    is_timed = not federation.is_centralized or charged_profile(federation.strategy) is not None
    if federation.is_centralized:
        logs = [OfOnePlace(log, is_timed=is_timed) for log in logs]
    server = simulate(replace(federation, begin=remembered.begin), *logs)
    wall_s = time.perf_counter() - began
    if config.training != "none" and federation.has_global_model:
        with store.writing():
            trainers.export(server.state.adapter, world, prepared.folder)
    if config.faults != FaultsConfig():
        store.faults(fault_schedules(world.faults, server.now_s))
    own = own_scores(federation.strategy, server.state, world, remembered.trainer)
    if of_devices := _expected(server, world) | own:
        store.of_devices(of_devices)
    outcome = _outcome(server, world.task.metrics, wall_s) | remembered.savings
    if not is_timed:
        outcome["simulated_s"] = 0.0
    if not federation.has_global_model:
        outcome["adapter_sha256"] = None
    return outcome | spent_privacy(config, world, rounds=server.state.version)


def _expected(server: Server, world: World) -> dict[str, list[float]]:
    """Return the column of what each device's groups let it expect of the final model, if known."""
    by_group, groups = server.evaluations.last.by_group, world.task.groups("train")
    if not by_group or groups is None:
        return {}
    shards = world.fleet.shards.each(range(len(world.fleet)))
    found = expected_scores(shards, groups, by_group)
    return {f"expected_{world.task.metrics[0].name}": found}


def own_scores(
    strategy: Strategy[Any], state: ServerState[Any], world: World, trainer: Trainer
) -> dict[str, list[float]]:
    """Put the model that each device uses to the examples that it kept from training.

    A column for each metric, as ``own_accuracy``, with NaN for a device that kept no example; no
    column where nobody did, or nothing is trained.
    """
    asked = [device for device, examples in enumerate(world.own_tests) if len(examples)]
    if not asked:
        return {}
    found = trainer.evaluate_own(
        [OwnTest(strategy.own_model(state, d), world.own_tests[d]) for d in asked]
    )
    if not any(one.values for one in found):
        return {}
    columns = {
        f"own_{metric.name}": [math.nan] * len(world.own_tests) for metric in world.task.metrics
    }
    for device, one in zip(asked, found, strict=True):
        for name, value in one.values.items():
            columns[f"own_{name}"][device] = value
    return columns


def _close_broken(logs: Sequence[RunFolder | RunWriter], error: BaseException) -> None:
    status: Status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    with suppress(RunFolderError):  # closing may fail for the same reason, such as a full disk
        _close(logs, status, {"error": without_folders(repr(error))})


def _close_done(
    prepared: Prepared,
    logs: Sequence[RunFolder | RunWriter],
    outcome: Mapping[str, Any],
    *,
    trainers: Trainers,
    report: Reporter,
) -> None:
    label = prepared.config.label
    said = f"{label}: its tables cannot be written"
    try:
        _close(logs, "done", outcome)
        if trainers.cache:
            trainers.cache.trim()
        said = (
            f"{label}: done in {duration(outcome['wall_s'])}, simulated "
            f"{duration(outcome['simulated_s'])}{savings_in_words(outcome)} ({prepared.folder})"
        )
    finally:
        for complaint in trainers.complaints():
            report.step(complaint)
        report.finish(said)


def _close(
    logs: Sequence[RunFolder | RunWriter], status: Status, outcome: Mapping[str, Any]
) -> None:
    for log in logs:
        log.close(status, outcome)


def savings_in_words(outcome: Mapping[str, Any]) -> str:
    """Say how many trainings were reused, to stand behind "done"; return "" where none was."""
    reused = outcome.get("num_trainings_reused")
    return f", reused {reused} of {outcome['num_trainings']} trainings" if reused else ""


def federation_of(config: RunConfig, world: World, trainer: Trainer) -> Federation:
    """Return everything that the simulation of this config is made of."""
    training = TrainingOptions() if config.training == "none" else config.training
    rules = Rules(
        local=config.local,
        stop=config.stop,
        evaluate_every=config.evaluation.every,
        robustness=config.aggregation,
        when_offline=config.fleet.when_offline,
        when_out_of_memory=config.fleet.when_out_of_memory,
        when_diverged=training.when_diverged,
        stack=training.stack,
        learning_rate=training.learning_rate,
        schedule=training.schedule,
        rslora=training.rslora,
    )
    strategy, optimizer = config.strategy, config.server_optimizer
    if config.privacy:
        cohort = config.pacing.slots(in_flight=0, buffered=0)
        noise_seed = int(stream(config.seed, "privacy").integers(2**63))
        strategy = WithPrivacy(strategy, config.privacy, cohort, noise_seed)
    federation = Federation(
        world=world,
        rules=rules,
        strategy=WithServerOptimizer(strategy, optimizer) if optimizer else strategy,
        pacing=config.pacing,
        selection=config.selection,
        trainer=trainer,
        seed=config.seed,
    )
    return in_one_place(federation) if federation.is_centralized else federation


def _manifest(
    prepared: Prepared, inputs: Mapping[str, Any], host: HostNames | None
) -> dict[str, Any]:
    config, task = prepared.config, prepared.world.task
    own = source_of(config.strategy)
    return {
        "experiment": config.name,
        "label": config.label,
        "strategy": config.strategy.kind,
        "strategy_sha256": own.sha256 if own else None,
        "seed": config.seed,
        "config_hash": config.hash,
        "read_alone": config.read_alone,
        **seen_from(config, prepared.folder),
        **inputs,
        "columns_not_used": list(task.data.unused),
        "task": {"kind": task.kind, "metrics": [asdict(metric) for metric in task.metrics]},
        "training_dtype": host.dtype if host else None,
        **provenance(),
    }


def _outcome(server: Server, metrics: Sequence[Metric], wall_s: float) -> dict[str, Any]:
    score = server.evaluations.last_score
    (metric, *_) = metrics
    return {
        "adapter_sha256": server.state.adapter.digest,
        "num_rounds": server.num_rounds,
        "simulated_s": server.now_s,
        f"final_{metric.name}": None if math.isnan(score) else score,
        "wall_s": round(wall_s, 3),
    }
