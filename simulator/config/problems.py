"""What is wrong with a config, collected so that all of it can be said at once, and the error that
says it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """The user made a mistake and can mend it; the message is all that they need to see."""


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
