"""Says where a key of a config stands: in which line of its file, or in which override of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from simulator.config.plain_yaml import Place, key_places

MAX_SHOWN = 100
"""Characters of an override that a message quotes."""


@dataclass(frozen=True)
class Origin:
    """The origin of a config is its file, with the overrides that were set over it.

    A problem of the config begins with the key that it is about, as in ``stop.rounds must be
    given``. Where that key does not stand anywhere, the section that lacks it is meant.
    """

    file: Path
    overrides: tuple[str, ...] = ()

    def in_order(self, problems: Sequence[str]) -> list[str]:
        """Return the problems, each once: those of the file from top to bottom, then the rest."""
        return sorted(dict.fromkeys(problems), key=self._rank)

    def told(self, problem: str) -> str:
        """Return the problem with its place in brackets behind it."""
        if override := self._override(problem):
            return f"{problem} ({self.file} with {override:.{MAX_SHOWN}})"
        place = self._place(problem)
        return f"{problem} ({self.file}{place.in_words if place else ''})"

    def _rank(self, problem: str) -> tuple[float, int]:
        place = None if self._override(problem) else self._place(problem)
        return (place.line, place.column) if place else (math.inf, 0)

    def _override(self, problem: str) -> str | None:
        """Return the last override of the key that a problem is about, or of a section above it."""
        for override in reversed(self.overrides):
            first, *rest = override.partition("=")[0].strip().split(".")
            keys = [re.escape(first), *map(re.escape, rest)]
            if first == "strategy" and rest:  # which reaches every one of several
                keys[0] = r"(strategy|strategies\.[A-Za-z0-9._-]+)"
            if re.match(r"\.".join(keys) + r"[ .:]", problem):
                return override
        return None

    def _place(self, problem: str) -> Place | None:
        ends = (" ", ".", ":")
        named = [k for k in self._places if any(problem.startswith(f"{k}{end}") for end in ends)]
        return self._places[max(named, key=len)] if named else None

    @cached_property
    def _places(self) -> Mapping[str, Place]:
        """The place of each key; none where the file is a pipe, or cannot be read once more."""
        try:
            return key_places(self.file.read_text("utf-8")) if self.file.is_file() else {}
        except (OSError, ValueError):
            return {}
