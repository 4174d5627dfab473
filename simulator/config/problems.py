"""What is wrong with a config, collected so that all of it can be said at once, and the error that
says it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """A mistake that the user can mend: its message is all that they need to see."""


class Problems:
    """The problems found so far, one line each."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, problem: str) -> None:
        """One more."""
        self.found.append(problem)

    def attempt(self, key: str, load: Callable[[], T]) -> T | None:
        """What ``load`` returns; nothing, and one problem more under ``key``, where it cannot."""
        try:
            return load()
        except ValueError as error:
            self.add(f"{key}: {error}")
            return None
