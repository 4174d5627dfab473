"""Defines the command ``fedclock explain``, which says what a key of a config means."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from simulator.config.editor_schema import editor_schema
from simulator.config.experiment import ConfigError
from simulator.config.problems import UserError
from simulator.config.reference import as_page, explained, reference
from traces.text import did_you_mean

OF_A_RUN = ("label", "strategy_title", "place")
"""Keys of the config in a run folder that FedClock adds and nobody writes."""


def explain(
    key: Annotated[
        str | None, typer.Argument(help="a key, as pacing.cohort or only cohort")
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="the JSON schema of a config, for editors")
    ] = False,
    page: Annotated[
        bool,
        typer.Option("--page", help="all keys, in the form of docs/configuration-reference.md"),
    ] = False,
) -> None:
    """Say what may stand at a key, its default and unit, and what it does."""
    if schema:
        print(json.dumps(editor_schema(), indent=2))
        return
    if page:
        print(as_page(), end="")
        return
    if key is None:
        raise ConfigError(["give a key, --schema or --page"], "explain")
    found = explained(key)
    if not found:
        known = sorted({entry.key for part in reference() for entry in part.entries})
        top = [entry.key for entry in reference()[0].entries if entry.key not in OF_A_RUN]
        sections = ", ".join([*top, "strategies"])
        near = did_you_mean(key.rpartition(".")[2], known, most=3)
        raise UserError(
            f"a key must be one of a config, got {key}{near or f'; at its top stand {sections}'}; "
            "`fedclock explain --page` has all keys"
        )
    console = Console(highlight=False, soft_wrap=True)
    for place, entry in found:
        unit = f" ({entry.unit})" if entry.unit else ""
        default = f"; {entry.default}" if entry.default == "must be given" else ""
        if entry.default and not default:
            default = f"; default {entry.default}"
        console.print(f"{place}: {entry.may_be}{unit}{default}", markup=False)
        console.print(f"  {entry.text.replace('``', '`')}", markup=False)
