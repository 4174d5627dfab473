"""Defines the command ``fedclock figures``, which draws a paper's figures from run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analysis.commands.options import Folders, Target, Where, place_beside, say
from analysis.commands.voice import results
from simulator.config.experiment import ConfigError
from traces.text import counted, unknown


def figures(
    folders: Folders,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="folder for the figures")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="name of a figure; all figures if absent")
    ] = None,
    paper: Annotated[str, typer.Option(help="ieee | acm | neurips: the width of figures")] = "ieee",
    band: Annotated[
        str, typer.Option(help="range | ci95 | quartiles: what a band over seeds shows")
    ] = "range",
    over: Annotated[
        str | None, typer.Option(help="a swept key, or fleet: draw results against its values")
    ] = None,
    target: Target = None,
    where: Where = None,
    devices: Annotated[
        str | None, typer.Option(help="numbers of the devices to show one by one, e.g. 0,3,7")
    ] = None,
) -> None:
    """Draw finished runs, over all their seeds, as PDF, PNG and SVG with the CSV behind each."""
    from dataclasses import replace

    # Imported here, since importing pandas and matplotlib takes a second.
    from analysis.figures.bands import BANDS
    from analysis.figures.style import PAPERS
    from analysis.results import result_of, write_figures, write_sensitivity
    from analysis.runs.choose import chosen
    from analysis.runs.frames import open_runs

    for option, given, choices in (("--paper", paper, PAPERS), ("--band", band, BANDS)):
        if given not in choices:
            raise ConfigError([unknown(option.removeprefix("--"), given, choices)], option)
    numbers = _numbers(devices or "")
    result = result_of(chosen(open_runs(folders), where or ()))
    place = place_beside(folders, "figures", output, where or ())
    style = replace(PAPERS[paper], band=band)
    if over is None:
        written = write_figures(
            result, place, names=only or (), paper=style, target=target, devices=numbers
        )
    else:
        written = write_sensitivity(result, place, over, paper=style, target=target)
    console = results()
    for line in result.found.left_out:
        say(console, f"left out: {line}")
    if empty := [name for name in only or () if not any(p.stem == name for p in written)]:
        say(console, f"nothing to show in these runs: {', '.join(empty)}")
    say(console, f"{counted(len(written), 'file')} in {place}")


def _numbers(text: str) -> list[int]:
    """Return the device numbers in a list such as ``0,3,7``."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if wrong := [part for part in parts if not (part.isascii() and part.isdigit())]:
        raise ConfigError(
            [f"must be numbers of devices such as 0,3,7, got {wrong[0]}"], "--devices"
        )
    return [int(part) for part in parts]
