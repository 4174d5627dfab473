"""Defines the command ``fedclock calibrate``, which makes a device profile of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analysis.commands.options import say
from analysis.commands.voice import results
from simulator.config.problems import UserError


def calibrate(
    output: Annotated[Path, typer.Option("--output", "-o", help="profile to write, a .toml file")],
    name: Annotated[str, typer.Option(help="name of the device")],
    quick: Annotated[bool, typer.Option("--quick", help="fewer and smaller steps")] = False,
    model: Annotated[str, typer.Option(help="model that is trained")] = "minilm-l6",
    targets: Annotated[
        str, typer.Option(help="its layers with LoRA, with commas between, e.g. c_attn for gpt2")
    ] = "query,value",
    compute: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="number of threads; one a core unless given")
    ] = None,
    like: Annotated[
        str, typer.Option(help="device whose watts are copied, since power is not measured")
    ] = "laptop-core-i5-1135g7",
) -> None:
    """Turn this machine into a device profile, by timing real training steps on it."""
    # Imported here, since importing scipy takes a second.
    from analysis.calibration import calibrate as calibration
    from analysis.calibration.step_fit import FULL, QUICK

    if output.suffix != ".toml":
        raise UserError(f"--output must be a .toml file, got {output}")
    effort = QUICK if quick else FULL
    layers = targets.split(",")
    try:
        bench = calibration.open_bench(
            model, layers, effort=effort, compute=compute, threads=threads
        )
        said = calibration.calibrate(output, name, bench, like=like)
    except ValueError as error:
        raise UserError(str(error)) from None
    for line in said:
        say(results(), line)
