"""Defines the command ``fedclock check``, which holds a scheduler to its contract."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from algorithms.checks import contract_problems
from algorithms.registry import STRATEGIES
from simulator.config.experiment import ConfigError
from simulator.config.own_strategy import load_strategy, names_file
from simulator.config.plain_yaml import parse_yaml
from traces.text import did_you_mean


def check(
    kind: Annotated[
        str, typer.Argument(help="mine.py:MyStrategy, or one of fedclock list strategies")
    ],
    options: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="an option that is not its default"),
    ] = None,
) -> None:
    """Try each clause of the scheduler's contract; the file is run to do so."""
    strategy = _made(kind, dict(_option(one) for one in options or ()))
    if problems := contract_problems(strategy):
        raise ConfigError(problems, kind)
    print(f"{kind}: every clause holds")


def _made(kind: str, options: dict[str, Any]) -> Any:
    if names_file(kind):
        cls: Any = load_strategy({"kind": kind}, Path.cwd())
    elif kind in STRATEGIES:
        cls = STRATEGIES[kind]
    else:
        near = did_you_mean(kind, STRATEGIES)
        if kind.endswith(".py"):
            near = f"; name the class too, as in {kind}:MyStrategy"
        known = ", ".join(STRATEGIES)
        problem = f"a strategy must be file.py:Class or one of {known}, got {kind}{near}"
        raise ConfigError([problem], "check")
    try:
        return cls(**options)
    except (TypeError, ValueError) as error:
        problem = f"its options must make a strategy, as --option rank=4 may, but: {error}"
        raise ConfigError([problem], kind) from None


def _option(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not (key and sign):
        raise ConfigError([f"an option must be KEY=VALUE, got {text}"], "--option")
    return key, parse_yaml(value)
