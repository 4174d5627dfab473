"""Defines ``fedclock`` with all of its commands, in the order in which its help lists them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from analysis.commands import runs, traces
from analysis.commands.calibrate import calibrate
from analysis.commands.check import check
from analysis.commands.explain import explain
from analysis.commands.fetch import fetch
from analysis.commands.figures import figures
from analysis.commands.init import init
from analysis.commands.reports import compare, report, timeline
from analysis.commands.running import (
    complain,
    list_names,
    record_conditions,
    run_experiment,
    validate,
)
from analysis.commands.shards import shards
from analysis.commands.sweeps import summary, sweep
from analysis.commands.voice import with_voice
from devices.cost.measured import OutsideMeasuredError
from devices.fetching.packages import FetchError
from devices.vocabulary.trainer import TrainingError
from simulator.config.problems import UserError
from simulator.log.checked import InvariantError


class Commands(TyperGroup):
    """This group of commands says where an option belongs that was given before its command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read what stands before the command; an option of the command's own ends in a message."""
        given = list(args)
        try:
            return list(super().parse_args(ctx, args))
        except typer.BadParameter:
            raise
        except Exception as error:
            option = getattr(error, "option_name", None)
            name = next((word for word in given if word in self.commands), None)
            if option is None or name is None:
                raise
            params = self.commands[name].params
            if not any(option in one.opts for one in params):
                raise
            raise UserError(
                f"{option} must follow the command, got it before {name}; "
                f"write: fedclock {name} {option}"
            ) from None


app = typer.Typer(
    name="fedclock",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
COMMANDS: dict[str, Callable[..., None]] = {
    "init": init,
    "run": run_experiment,
    "validate": validate,
    "check": check,
    "explain": explain,
    "record": record_conditions,
    "shards": shards,
    "list": list_names,
    "fetch": fetch,
    "calibrate": calibrate,
    "compare": compare,
    "figures": figures,
    "report": report,
    "summary": summary,
    "sweep": sweep,
    "timeline": timeline,
}


def _show_version(asked: bool) -> None:
    if asked:
        print(f"fedclock {metadata.version('fedclock')}")
        raise typer.Exit


@app.callback(help="Federated LoRA on simulated edge devices: simulated clock, real training.")
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_show_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Take what every command takes; ``version`` is answered by its callback."""


for name, command in COMMANDS.items():
    app.command(name)(command)
app.add_typer(runs.app, name="runs")
app.add_typer(traces.app, name="traces")
for group in (app, runs.app, traces.app):
    for one in group.registered_commands:
        one.callback = with_voice(one.callback) if one.callback else None


def main() -> None:
    """Run the command line; a mistake of the user's is one message and exit code 2."""
    try:
        app()
    except (UserError, TrainingError, OutsideMeasuredError, FetchError) as error:
        complain(error)
        sys.exit(2)
    except InvariantError as error:
        complain(error)
        print(
            "This is a mistake in FedClock or in a scheduler of your own; the run folder keeps the "
            "events up to it.",
            file=sys.stderr,
        )
        sys.exit(1)
