"""Writes the conditions that a run met as an experiment that replays them."""

from __future__ import annotations

import math
from pathlib import Path

from devices.datasets.dataset import DATASETS
from devices.datasets.fetched import FETCHED_DATA
from devices.models.catalog import MODELS
from simulator.config.experiment import load_recorded
from simulator.config.own_strategy import MAX_BYTES, names_file
from simulator.config.paths import checked_path, file_at
from simulator.config.plain_yaml import dump_yaml
from simulator.config.problems import UserError
from simulator.log.disk import write_atomically, writing_into
from simulator.log.manifest import RunFolderError, lost_files, read_manifest
from simulator.world.build import build_world
from simulator.world.recorded import fault_schedules, write_conditions

WITH_A_NAME = (*MODELS, *DATASETS, *FETCHED_DATA)
"""Models and data sets with a name of their own, which no folder of that name replaces."""


def record(run_folder: Path, output: Path) -> Path:
    """Write ``conditions.json`` and ``experiment.yaml`` into ``output``; return the latter.

    The experiment has the events of the run, byte for byte. With another strategy in it, that
    scheduler meets the same conditions. A model or data set of the user's is named by its absolute
    path. A strategy of the user's is copied
    beside it as text; none of it is run. Faults are written as far as the run lasted. Raises
    UserError where the run is not finished, or its inputs have changed.
    """
    manifest = read_manifest(run_folder)
    if manifest.get("status") != "done":
        raise RunFolderError(
            f"a run must be finished to be recorded, got {manifest.get('status', 'no run')} in "
            f"{run_folder}"
        )
    if lost := lost_files(run_folder, manifest):
        raise RunFolderError(
            f"every file of the run in {run_folder} must be as it was written, but "
            f"{', '.join(lost)[:300]} is gone or differs from its SHA-256 in manifest.json"
        )
    until_s = manifest.get("simulated_s")
    if not isinstance(until_s, int | float) or not 0 <= until_s < math.inf:
        raise RunFolderError(f"{run_folder / 'manifest.json'} is damaged: simulated_s is no number")
    file = run_folder / "config.yaml"
    config = load_recorded(file)
    code = _own_code(config.strategy.kind, run_folder)
    world = build_world(config, str(file))
    if world.conditions_hash != manifest.get("conditions_hash"):
        raise RunFolderError(
            f"the traces and data that {file} names must be those of the run, but have changed"
        )
    if not world.modes.are_none:
        raise UserError(
            "power modes must not change by round in a run that is recorded, since they follow the "
            f"rounds of each scheduler and not the clock; {run_folder} has fleet.devices.*.modes"
        )
    plain = config.resolved()
    plain["name"] = f"{config.name}-replayed"[:64]
    keep = ("when_offline", "when_out_of_memory")
    fleet = {key: plain["fleet"][key] for key in keep}
    plain["fleet"] = fleet | {"recorded": "conditions.json"}
    plain.pop("network", None)  # the recorded conditions contain it
    for section, key in (("task", "model"), ("task", "data"), ("cost", "model"), ("cost", "table")):
        named = getattr(getattr(config, section), key)
        if named and named not in WITH_A_NAME and (path := file_at(named)):
            plain[section][key] = str(path.resolve())
    plain["faults"] = fault_schedules(world.faults, until_s)
    try:
        with writing_into(output) as folder:
            write_conditions(folder / "conditions.json", world.fleet, world.shared_links)
            for name, text in code.items():
                write_atomically(folder / name, text)
            write_atomically(folder / "experiment.yaml", dump_yaml(plain))
    except OSError as error:
        raise UserError(f"the conditions cannot be written to {output}: {error}") from None
    return output / "experiment.yaml"


def _own_code(kind: str, run_folder: Path) -> dict[str, bytes]:
    """Return the run's own strategy file by its name, to be copied and not run; empty for ours."""
    if not names_file(kind):
        return {}
    name = Path(kind.rpartition(":")[0]).name
    try:
        checked_path(name, run_folder, max_bytes=MAX_BYTES)
        return {name: (run_folder / name).read_bytes()}
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{run_folder / name} cannot be read: {error}") from None
