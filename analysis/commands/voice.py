"""Prints what a command says beside its results: less with ``-q``, more with ``-v``.

Results and errors are always printed. Commands take both options in one place,
``with_voice``; what packages tell of their work goes to the logger ``fedclock``, which a command
shows on standard error where it is asked to.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from typing import Annotated, Any

import typer
from rich.console import Console

from analysis.escape import visible
from simulator.config.experiment import ConfigError

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print results and errors alone")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="also say what is read, kept and decided")
]

_is_quiet: ContextVar[bool] = ContextVar("is_quiet", default=False)


def results() -> Console:
    """Return the console for what a command was asked for."""
    return Console()


def chatter() -> Console:
    """Return the console for progress, notes and advice, which prints nothing where it is quiet."""
    return Console(quiet=_is_quiet.get())


def with_voice(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with the options ``--quiet`` and ``--verbose``."""

    @wraps(command)
    def called(*given: Any, quiet: bool = False, verbose: bool = False, **named: Any) -> None:
        if quiet and verbose:
            raise ConfigError(["give --quiet or --verbose, at most one of the two"], "-q -v")
        token = _is_quiet.set(quiet)
        try:
            with _shown() if verbose else nullcontext():
                command(*given, **named)
        finally:
            _is_quiet.reset(token)

    signature = inspect.signature(command, eval_str=True)
    own = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=hint)
        for name, hint in (("quiet", Quiet), ("verbose", Verbose))
    ]
    vars(called)["__signature__"] = signature.replace(
        parameters=[*signature.parameters.values(), *own]
    )
    called.__annotations__ = {one.name: one.annotation for one in own} | {
        one.name: one.annotation for one in signature.parameters.values()
    }
    return called


@contextmanager
def _shown() -> Iterator[None]:
    """Print what packages log meanwhile, a line each, on standard error."""
    logger, handler = logging.getLogger("fedclock"), _Lines()
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _Lines(logging.Handler):
    """This log handler prints each record as one line on standard error, without wrapping it."""

    def emit(self, record: logging.LogRecord) -> None:
        console = Console(stderr=True)
        console.print(visible(record.getMessage()), highlight=False, soft_wrap=True, markup=False)
