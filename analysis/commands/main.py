"""The command ``fedclock``: every command in the order in which its help shows them."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from analysis.calibration.calibrate import calibrate
from analysis.commands import traces
from analysis.commands.check import check
from analysis.commands.fetch import fetch
from analysis.commands.figures import figures
from analysis.commands.reports import compare, report, timeline
from analysis.commands.running import (
    complain,
    list_names,
    record_conditions,
    run_experiment,
    validate,
)
from analysis.commands.sweeps import summary, sweep
from devices.cost.measured import OutsideMeasuredError
from devices.fetching.packages import FetchError
from devices.vocabulary.trainer import TrainingError
from simulator.config.problems import UserError
from simulator.log.checked import InvariantError

app = typer.Typer(
    name="fedclock",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Federated LoRA fine-tuning on simulated edge devices: simulated clock, real training.",
)
COMMANDS: dict[str, Callable[..., None]] = {
    "run": run_experiment,
    "validate": validate,
    "check": check,
    "record": record_conditions,
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
for name, command in COMMANDS.items():
    app.command(name)(command)
app.add_typer(traces.app, name="traces")


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
