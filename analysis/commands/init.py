"""Defines the command ``fedclock init``, which writes a commented config to begin with."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from analysis.commands.options import say
from analysis.commands.voice import chatter, results
from simulator.config.problems import UserError
from simulator.log.disk import write_atomically
from traces.text import unknown

PURPOSES = {
    "compare": ("compare schedulers on one fleet", ()),
    "sweep": ("several seeds and values of a setting", ()),
    "trace-replay": ("replay links that you measured", ("my-link.csv",)),
    "own-data": ("fine-tune on your own texts, on a device of your own", ()),
}
"""The purpose of each config in words, and the files that it needs beside it."""
FIRST = {"own-data": "put train.csv and test.csv (text, label) into my-data, then "}
"""What is to be done before the config can be read."""


def init(
    purpose: Annotated[
        str,
        typer.Argument(help="; ".join(f"{name}: {words}" for name, (words, _) in PURPOSES.items())),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="file to write; the purpose's name if absent"),
    ] = None,
) -> None:
    """Write a commented config for a purpose; nothing is asked, and no file is replaced."""
    if purpose not in PURPOSES:
        raise UserError(unknown("a purpose", purpose, PURPOSES))
    file = output or Path(f"{purpose}.yaml")
    needed = PURPOSES[purpose][1]
    texts = {file: _template(f"{purpose}.yaml").replace("{file}", str(file))}
    texts |= {file.parent / name: _template(name) for name in needed}
    if there := [str(path) for path in texts if path.exists()]:
        raise UserError(f"no file is replaced, but {', '.join(there)} is there; give another -o")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            write_atomically(path, text)
    except OSError as error:
        raise UserError(f"the config cannot be written to {file}: {error}") from None
    say(results(), f"Written: {', '.join(map(str, texts))}")
    say(chatter(), f"Next: {FIRST.get(purpose, '')}fedclock validate {file}")


def _template(name: str) -> str:
    return files("analysis.commands").joinpath("templates", name).read_text("utf-8")
