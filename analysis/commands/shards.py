"""The command ``fedclock shards``: how the training examples are divided among the devices."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from analysis.commands.options import File, Overrides
from devices.datasets.partition import partition_statistics
from simulator.config.experiment import load_experiment
from simulator.world.build import build_world, shard_groups


def shards(
    file: File,
    overrides: Overrides = None,
    each: Annotated[bool, typer.Option("--each", help="a line for each device too")] = False,
) -> None:
    """Show how the training examples of an experiment are divided among its devices."""
    config = load_experiment(file, overrides or ())[0]
    world = build_world(config, str(file))
    groups = shard_groups(config, world.task)
    held = [world.fleet.shards[device] for device in range(len(world.fleet))]
    console = Console()
    table = Table("shards of seed " + str(config.seed), config.shards.kind)
    for name, value in partition_statistics(held, groups).items():
        table.add_row(name, f"{value:.4g}")
    console.print(table)
    if each:
        lines = Table("device", "examples", "groups")
        for device, shard in enumerate(held):
            known = "" if groups is None else str(len(set(groups[shard].tolist())))
            lines.add_row(str(device), str(len(shard)), known)
        console.print(lines)
