"""Makes an experiment of its own out of the conditions that a run met."""

from __future__ import annotations

from pathlib import Path

import yaml

from simulator.config.experiment import load_experiment
from simulator.config.problems import UserError
from simulator.log.disk import writing_into
from simulator.log.manifest import RunFolderError, read_manifest
from simulator.world.build import build_world
from simulator.world.recorded import fault_schedules, write_conditions


def record(run_folder: Path, output: Path) -> Path:
    """Write ``conditions.json`` and ``experiment.yaml`` into ``output``; return the latter.

    Run from the same place, the experiment has the events of the run, byte for byte. Change its
    strategy, and another scheduler meets the same conditions. Faults are written as far as the run
    lasted. Raises UserError where the run is not finished, or its inputs are others now.
    """
    manifest = read_manifest(run_folder)
    if manifest.get("status") != "done":
        raise RunFolderError(
            f"a run must be finished to be recorded, got {manifest.get('status', 'no run')} in "
            f"{run_folder}"
        )
    file = run_folder / "config.yaml"
    (config,) = load_experiment(file)
    world = build_world(config, str(file))
    if world.conditions_hash != manifest["conditions_hash"]:
        raise RunFolderError(
            f"the traces and data that {file} names must be those of the run, but have changed"
        )
    plain = config.resolved()
    plain["name"] = f"{config.name}-replayed"[:64]
    if ".." in output.parts:  # a config names what lies outside by an absolute path
        output = output.resolve()
    keep = ("when_offline", "when_out_of_memory")
    fleet = {key: plain["fleet"][key] for key in keep}
    plain["fleet"] = fleet | {"recorded": str(output / "conditions.json")}
    plain.pop("network", None)  # the conditions hold it
    plain["faults"] = fault_schedules(world.faults, manifest["simulated_s"])
    try:
        with writing_into(output) as folder:
            write_conditions(folder / "conditions.json", world.fleet, world.shared_links)
            (folder / "experiment.yaml").write_text(
                yaml.safe_dump(plain, sort_keys=False), "utf-8", newline="\n"
            )
    except OSError as error:
        raise UserError(f"the conditions cannot be written to {output}: {error}") from None
    return output / "experiment.yaml"
