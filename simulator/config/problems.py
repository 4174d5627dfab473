"""Collects what is wrong with a config, so that all of it can be said at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

MAX_SHOWN = 200
"""The number of characters of a wrong value that a message quotes."""


class UserError(ValueError):
    """This error is a mistake that the user can mend; its message is all that they need to see."""


class Problems:
    """Problems are collected here, one line each."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, problem: str) -> None:
        """Add a problem."""
        self.found.append(problem)

    def attempt(self, key: str, load: Callable[[], T]) -> T | None:
        """Return what ``load`` returns; where it raises ValueError, add that under ``key``."""
        try:
            return load()
        except ValueError as error:
            self.add(f"{key}: {error}")
            return None


def shown(given: Any) -> str:
    """Return what was given as a message quotes it, cut to a few words."""
    try:
        text = repr(given)
    except ValueError:  # Python refuses to print numbers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def shown_keys(where: Sequence[str | int]) -> str:
    """Return keys as a message names them: joined by dots, each cut to ``MAX_SHOWN``."""
    return ".".join(str(part)[:MAX_SHOWN] for part in where)
