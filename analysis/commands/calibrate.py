"""The command ``fedclock calibrate``: this machine as a device profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analysis.commands.options import say
from analysis.commands.voice import results
from simulator.config.problems import UserError


def calibrate(
    output: Annotated[Path, typer.Option("--output", "-o", help="profile to write, a .toml file")],
    name: Annotated[str, typer.Option(help="what the device shall be called")],
    quick: Annotated[bool, typer.Option("--quick", help="fewer and smaller steps")] = False,
    model: Annotated[str, typer.Option(help="what is trained")] = "minilm-l6",
    targets: Annotated[
        str, typer.Option(help="its layers with LoRA, between commas: c_attn for gpt2")
    ] = "query,value",
    compute: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="one a core unless given")] = None,
    like: Annotated[
        str, typer.Option(help="device whose watts are taken, for they are not measured")
    ] = "laptop-core-i5-1135g7",
) -> None:
    """Turn this machine into a device profile, by timing real training steps on it."""
    from analysis.calibration import calibrate as calibration  # scipy takes a second
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
