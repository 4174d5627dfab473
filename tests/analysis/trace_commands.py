"""This module calls the commands of ``fedclock traces`` in this process."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from analysis.commands.traces import app
from simulator.config.problems import UserError


def traces(*arguments: str | Path) -> Result:
    """Return the result of a command that must succeed."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exception is None, result.exception
    return result


def refused(*arguments: str | Path) -> str:
    """Return the message of a command that must refuse."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)
