"""Collects what is wrong with a config, so that all of it can be said at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


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
