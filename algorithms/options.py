"""What must hold of a strategy's options, and the error that says so."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, get_args, get_origin, get_type_hints

Rule = tuple[str, str, Callable[..., bool]]
"""An option, what must hold of it in words, and as a test."""

SIZE_RULES: tuple[Rule, ...] = (
    ("rank", "at least 1", lambda value: value >= 1),
    ("alpha", "above 0", lambda value: value > 0),
    ("alpha", "finite", math.isfinite),
)
"""Of the global adapter."""


def check_options(options: object, rules: Sequence[Rule]) -> None:
    """Raises ValueError for a Literal option outside its choices, or one that breaks a rule."""
    for name, hint in get_type_hints(type(options)).items():
        given = getattr(options, name)
        if get_origin(hint) is Literal and given not in get_args(hint):
            choices = ", ".join(map(str, get_args(hint)))
            raise ValueError(f"{name} must be one of {choices}, got {given!r}")
    for name, rule, holds in rules:
        given = getattr(options, name)
        if not holds(given):
            raise ValueError(f"{name} must be {rule}, got {given!r}")


def rises(numbers: Sequence[int]) -> bool:
    """Whether there is a number, and each is above the one before."""
    return len(numbers) > 0 and all(low < high for low, high in pairwise(numbers))


def rank_list_rule(name: str) -> Rule:
    """Of an option that lists ranks."""
    return name, "rising numbers of at least 1", lambda ranks: rises(ranks) and ranks[0] >= 1
