"""Says where a key of a config stands: in which line of its file, or in which override of it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from simulator.config.plain_yaml import Place, key_places
from traces.text import listed

_KEY = re.compile(r"[A-Za-z0-9._-]+")

_SECONDS = re.compile(r"\d+(?:\.\d+)?(?:e[-+]\d+)?(?= s\b)")

MAX_SHOWN = 100
"""The number of characters of an override that a message quotes."""


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

    def in_file(self, problem: str) -> str:
        """Return the problem with its place in the file in brackets behind it."""
        place = self._place(problem)
        return f"{problem} ({self.file}{place.in_words if place else ''})"

    def _rank(self, problem: str) -> tuple[float, int]:
        place = None if self.override_of(problem) else self._place(problem)
        return (place.line, place.column) if place else (math.inf, 0)

    def override_of(self, problem: str) -> str | None:
        """Return the last override of the key that a problem is about, or of a section above it."""
        for override in reversed(self.overrides):
            first, *rest = override.partition("=")[0].strip().split(".")
            keys = [re.escape(first), *map(re.escape, rest)]
            if first == "strategy" and rest:  # such an override applies to every strategy
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
        """Return the place of each key; none for a pipe or a file that cannot be read again."""
        try:
            return key_places(self.file.read_text("utf-8")) if self.file.is_file() else {}
        except (OSError, ValueError):
            return {}


Placed = tuple[str | Origin, str]
"""A problem after its origin, or after the name of the option that it is about."""


def told(found: Iterable[Placed]) -> list[str]:
    """Return a line for each problem, with the origin or the option that it is of behind it.

    What is wrong for one reason stands once: with all keys that an override reached, with all
    values that a grid gives them, and with the range of the seconds that it has at several seeds.
    """
    lines: dict[Any, list[_Overridden]] = {}
    for where, problem in _with_ranges(found):
        override = where.override_of(problem) if isinstance(where, Origin) else None
        if not isinstance(where, Origin):
            lines[f"{problem} ({where})"] = []
        elif override is None:
            lines[where.in_file(problem)] = []
        else:
            one = _Overridden.of(where, problem, override)
            lines.setdefault((where.file, one.name, one.rule), []).append(one)
    return [line for key, ones in lines.items() for line in (_joined(ones) or [key])]


def _with_ranges(found: Iterable[Placed]) -> Iterator[Placed]:
    """Yield the problems; those that differ in their seconds alone have the range of these."""
    alike: dict[tuple[object, ...], list[Placed]] = {}
    for where, problem in found:
        file = where.file if isinstance(where, Origin) else where
        alike.setdefault((file, *_SECONDS.split(problem)), []).append((where, problem))
    for (_, *words), same in alike.items():
        each = zip(*(_SECONDS.findall(problem) for _, problem in same), strict=True)
        ranges = (dict.fromkeys((min(s, key=float), max(s, key=float))) for s in each)
        texts = [*map(" to ".join, ranges), ""]
        text = "".join(f"{word}{seconds}" for word, seconds in zip(words, texts, strict=True))
        yield from ((where, text) for where, _ in same)


class _Overridden(NamedTuple):
    """This is a problem that an override caused, divided into its parts.

    The examples below are of ``strategies.a.rank must be at least 1, got 0``, which the override
    ``strategy.rank=0`` causes.
    """

    file: Path
    name: str  # the key of the override: strategy.rank
    value: str  # its value: 0
    key: str  # the key of the problem: strategies.a.rank
    rule: str  # what must hold: " must be at least 1"
    given: str  # what was given: "0"; empty where the problem does not end so

    @classmethod
    def of(cls, origin: Origin, problem: str, override: str) -> _Overridden:
        name, _, value = override.partition("=")
        key = _KEY.match(problem)[0]  # type: ignore[index]  # since the override is of the key
        rule, got, given = problem.removeprefix(key).rpartition(", got ")
        is_plain = got and ";" not in given  # after a semicolon comes advice for this value
        ends = (rule, given) if is_plain else (problem.removeprefix(key), "")
        return cls(origin.file, name.strip(), value.strip(), key, *ends)


def _joined(ones: Sequence[_Overridden]) -> list[str]:
    """Return the lines of problems of one rule: a line for all values that are wrong alike."""
    reached: dict[tuple[str, str], list[str]] = {}
    for one in ones:
        keys = reached.setdefault((one.value, one.given), [])
        keys += [one.key] if one.key not in keys else []
    by_keys: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for wrong, keys in reached.items():
        by_keys.setdefault(tuple(keys), []).append(wrong)
    lines = []
    for named, wrongs in by_keys.items():
        given = listed(list(dict.fromkeys(given for _, given in wrongs)))
        override = f"{ones[0].name}={','.join(dict.fromkeys(value for value, _ in wrongs))}"
        rule = ones[0].rule.replace(" is no key", " are no keys", 1) if named[1:] else ones[0].rule
        problem = f"{listed(named)}{rule}{', got ' * bool(given)}{given}"
        lines.append(f"{problem} ({ones[0].file} with {override:.{MAX_SHOWN}})")
    return lines
