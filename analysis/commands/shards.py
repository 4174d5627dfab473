"""Defines ``fedclock shards``, which shows how training examples are divided among devices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from analysis.commands.options import File, Overrides
from analysis.commands.traces import publish
from devices.datasets.partition import partition_statistics
from simulator.config.experiment import load_experiment
from simulator.config.problems import UserError
from simulator.world.build import build_world
from simulator.world.shards import shard_groups
from traces.arrays import IntArray


def shards(
    file: File,
    overrides: Overrides = None,
    each: Annotated[bool, typer.Option("--each", help="also print a line for each device")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="folder for the figure and its CSV")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite files that are there")] = False,
) -> None:
    """Show how the training examples of an experiment are divided among its devices."""
    config = load_experiment(file, overrides or ())[0]
    world = build_world(config, str(file))
    groups = shard_groups(config, world.task)
    held = [world.fleet.shards[device] for device in range(len(world.fleet))]
    console = Console()
    table = Table("shards of seed " + str(config.seed), config.shards.kind)
    for name, value in partition_statistics(held, groups).items():
        table.add_row(name, f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}")
    console.print(table)
    if each:
        lines = Table("device", "examples", "groups")
        for device, shard in enumerate(held):
            known = "" if groups is None else str(len(set(groups[shard].tolist())))
            lines.add_row(str(device), str(len(shard)), known)
        console.print(lines)
    if output:
        _draw(held, groups, output, force=force)
        print(f"The figure and the numbers behind it: {output}")


def _draw(held: Sequence[IntArray], groups: IntArray | None, folder: Path, *, force: bool) -> None:
    """Write the figure of the partition in every format. Raises UserError where it cannot be."""
    from analysis.figures import partition, render, style

    files = render(partition.frame(held, groups), partition.draw, style.IEEE)
    try:
        publish(
            {f"partition.{ending}": content for ending, content in files.items()},
            folder,
            force=force,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
