"""Checks all about runs that can be checked before the first begins; nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from devices.models.catalog import ModelSource
from devices.vocabulary.plan import DeviceId
from simulator.config.experiment import ConfigError, name_strategies
from simulator.config.origin import Origin
from simulator.config.paths import is_outside, path_texts
from simulator.config.schema import RunConfig
from simulator.log.manifest import check_same_config, is_finished, lost_files, read_manifest
from simulator.world.build import World, build_world, wrong_names
from simulator.world.deadline import late_devices, least_deadline_s
from simulator.world.rehearsal import rehearse
from traces.located import located


@dataclass(frozen=True, eq=False)
class Prepared:
    """A prepared run has been checked and can begin."""

    config: RunConfig
    folder: Path
    world: World
    notes: tuple[str, ...]  # notes for the user on what the run will do
    is_finished: bool


def prepare_all(
    configs: Sequence[RunConfig], origin: Origin, output: Path | None
) -> list[Prepared]:
    """Check all runs before the first begins; a note on several of them is the first one's.

    Without an ``output`` they are below ``runs``, and the run whose own config is read is where it
    is. Raises ConfigError with what is wrong in any.
    """
    prepared: list[Prepared] = []
    problems: list[str] = []
    for config in configs:
        try:
            one = prepare(config, _folder(config, origin, output), origin)
            said = {note for earlier in prepared for note in earlier.notes}
            notes = tuple(note for note in one.notes if note not in said)
            prepared.append(_with_texts_of(prepared, replace(one, notes=notes)))
        except ConfigError as error:
            problems += name_strategies(error.problems, config.label if configs[1:] else None)
    if problems:
        raise ConfigError(problems, origin)
    return prepared


def _folder(config: RunConfig, origin: Origin, output: Path | None) -> Path:
    """Return the folder of a run; a moved or copied one goes on where it is."""
    if output is not None:
        return output / config.folder
    home = origin.file.parent
    there = map(read_manifest(home).get, ("experiment", "label", "config_hash", "seed"))
    is_own = tuple(there) == (config.name, config.label, config.hash, config.seed)
    return home if is_own else Path("runs") / config.folder


def prepare(config: RunConfig, folder: Path, where: str | Origin) -> Prepared:
    """Check everything about a run that can be checked; nothing is written.

    Raises ConfigError or RunFolderError, the latter also for a folder with a finished run of this
    config whose traces, data or model were others.
    """
    check_same_config(folder, config.resolved())
    world = build_world(config, where)
    if isinstance(where, Origin):
        _check_files_of_run(config, world, where)
    said = [*data_notes(world), *notes(config, world, where)]
    finished = is_finished(folder, inputs_of(world))
    there = read_manifest(folder)
    if there.get("status") == "done" and not finished:
        lost = ", ".join(lost_files(folder, there))
        said.append(f"{config.label}: the finished run in {folder} lost {lost}; it is run again")
    return Prepared(config, folder, world, tuple(said), finished)


def _check_files_of_run(config: RunConfig, world: World, origin: Origin) -> None:
    """Check what the config of a run folder takes from outside of it against the run's manifest.

    So a run folder that somebody hands over names no file of this machine by a relative path but
    one that whoever made it had too. What ``--set`` names is the user's own. Raises ConfigError.
    """
    home = origin.file.parent
    outside = [text for text in path_texts(config) if is_outside(text, home)]
    if not outside:
        return
    named = {
        "data": ("task.data", config.task.data),
        "model": ("task.model", config.task.model),
        "cost_model": ("cost.model", config.cost.model),
    }
    recorded, inputs = read_manifest(home), inputs_of(world)
    wrong = [
        f"{key} must be the files that the run of this folder had, but those at {located(text)} "
        "have another SHA-256"
        for entry, (key, text) in named.items()
        if text in outside
        and origin.override_of(f"{key} ") is None
        and _sha256s(recorded, entry) != _sha256s(inputs, entry)
    ]
    rest = set(outside) - {text for _, text in named.values()}
    if rest and not origin.overrides and recorded.get("conditions_hash") != world.conditions_hash:
        wrong.append(
            "fleet must meet the traces and devices that the run of this folder met, but what "
            f"{', '.join(sorted(rest))[:200]} holds has changed"
        )
    if wrong:
        remedy = "; to run on them as they are, copy config.yaml into the folder of the experiment"
        raise ConfigError([f"{problem}{remedy}" for problem in wrong], origin)


def _sha256s(manifest: Mapping[str, Any], entry: str) -> tuple[Any, Any]:
    """Return the hashes that a manifest has of a model or data set."""
    found = manifest.get(entry)
    return (found.get("sha256"), found.get("files_sha256")) if isinstance(found, dict) else ("", "")


def _with_texts_of(earlier: Sequence[Prepared], one: Prepared) -> Prepared:
    """Give a run the texts of an earlier one where both read the same, so that they are held once.

    Each run of a comparison reads its data anew; 13 copies of 400,000 texts would take 1.7 GB.
    """
    task = one.world.task
    for other in earlier:
        known = other.world.task
        is_same = one.config.task == other.config.task and task.data.sha256 == known.data.sha256
        if is_same and task.data.train.columns.keys() == known.data.train.columns.keys():
            return replace(one, world=replace(one.world, task=known))
    return one


def load_runs(load: Callable[[], list[RunConfig]]) -> list[RunConfig]:
    """Return the runs that an experiment is read as.

    Raises ConfigError with all that is wrong with its keys, and with the files and names that the
    right ones give.
    """
    try:
        return load()
    except ConfigError as error:
        if (rest := error.readable) is None:
            raise
        further = wrong_names(rest.config, rest.wrong)
        raise ConfigError([*error.problems, *further], error.where) from None


def inputs_of(world: World) -> dict[str, Any]:
    """Return what the run is made from beside its config: two runs of one may differ in it."""
    task, data, source, charged = world.task, world.task.data, world.source, world.cost_source
    return {
        "conditions_hash": world.conditions_hash,
        "model": _named(source),
        **({"cost_model": _named(charged)} if charged else {}),
        "data": {
            "name": data.name,
            "sha256": data.sha256,
            "source": data.source,
            "num_train": len(data.train),
            "num_test": len(data.test),
            **task.facts(),
        },
    }


def _named(source: ModelSource) -> dict[str, str]:
    """Return what a manifest says of a model."""
    return {
        "name": source.name,
        "sha256": source.sha256,
        "files_sha256": source.files_sha256,
        "licence": source.licence,
        "pinned": source.pinned,
    }


def data_notes(world: World) -> list[str]:
    """Return a note on the columns of the data that nothing reads, if it has any."""
    data = world.task.data
    named = ", ".join(name if name.isprintable() else repr(name) for name in data.unused)
    return [f"{data.name}: columns not used: {named:.500}"] if data.unused else []


def notes(config: RunConfig, world: World, where: str | Origin) -> list[str]:
    """Return notes on devices that sit out, or are late whatever happens.

    Raises ConfigError where nothing can be planned, or nobody can ever be in time.
    """
    asked, plans = rehearse(config, world, where)
    if getattr(config.strategy, "is_centralized", False):
        return []  # a centralized run uses no device of the fleet
    planned = {plan.device_id for plan in plans}
    idle = [device for device in asked if device not in planned]
    found = []
    if idle:
        found.append(
            f"{config.label}: {len(idle)} of {len(world.fleet)} devices cannot hold any plan of "
            f"this strategy and will sit out: {_named_devices(idle)}"
        )
    if late := late_devices(config, world, plans):
        least_s, deadline_s = least_deadline_s(config, world, asked), config.pacing.deadline_s
        if least_s > deadline_s:
            problem = (
                f"pacing.deadline_s must leave some device the time for the smallest plan, which "
                f"takes {least_s:.3g} s or more on every one, got {deadline_s:g}"
            )
            raise ConfigError([problem], where)
        which = "every device" if len(late) == len(plans) else f"{len(late)} of {len(plans)}"
        found.append(
            f"{config.label}: the deadline of {deadline_s:g} s is shorter than what the first plan "
            f"of {which} takes at the best rates of its link, so that none of them arrives in "
            f"time: {_named_devices(late)}"
        )
    return found


def _named_devices(devices: Sequence[DeviceId]) -> str:
    return f"{', '.join(map(str, devices[:10]))}{', ...' * (len(devices) > 10)}"
