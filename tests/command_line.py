"""This module runs the command ``fedclock`` in this process and returns its exit code and what it
prints."""

from __future__ import annotations

import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest

from analysis.commands.main import main


@dataclass(frozen=True)
class Finished:
    """This holds what a command left behind, beside its files."""

    returncode: int
    stdout: str
    stderr: str


def fedclock(*arguments: str | Path, cwd: Path) -> Finished:
    """Run a command in ``cwd``, all but the entry point, which answers for a whole process.

    A process of its own would import torch and pandas anew, which takes seconds. Start one where
    signals, the environment or the end of the process are the point. An exception that would end
    the command with a traceback is raised here.
    """
    output, errors = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, chdir(cwd):
        patch.setattr(sys, "argv", ["fedclock", *map(str, arguments)])
        with redirect_stdout(output), redirect_stderr(errors):
            code = _exit_code()
    return Finished(code, output.getvalue(), errors.getvalue())


def _exit_code() -> int:
    """Return what the process would have ended with."""
    try:
        main()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
            return 1
        return ended.code or 0
    return 0
