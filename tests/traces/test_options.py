"""An annotation says what may stand in an option; the constructor holds to it, in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Le, Lt, MinLen

from traces.options import (
    RISING,
    Count,
    NotNegative,
    Positive,
    RisingCounts,
    Share,
    check_options,
    in_words,
)


@dataclass(frozen=True)
class Options:
    rank: Count = 8
    alpha: Positive = 16.0
    share: Share = 0.5
    part: Annotated[float, Gt(0), Lt(1)] = 0.5
    weight: NotNegative = 0.0
    most: Annotated[int, Le(9)] = 1
    ranks: RisingCounts = (1, 2)
    levels: Annotated[tuple[Literal[2, 4, 8], ...], RISING] = (2, 8)
    bits: Literal[4, 8] = 8
    depth: Literal["all", "common"] | Count = "all"
    blocks: Literal["memory"] | Annotated[tuple[Count, ...], MinLen(1)] = "memory"
    rates: tuple[Positive, Positive] | None = None
    names: dict[str, Positive] | None = None
    deadline_s: Annotated[float, Ge(0)] = math.inf

    def __post_init__(self) -> None:
        check_options(self)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"rank": 1, "alpha": 4, "share": 0, "part": 0.1, "deadline_s": 0},
        {"ranks": (3,), "levels": (4, 8), "depth": 3, "blocks": (3, 1), "rates": (1, 2.5)},
        {"ranks": [1, 2], "names": {"a": 1.0}},
    ],
)
def test_good_options_pass(given: dict[str, Any]) -> None:
    options = Options(**given)
    assert {name: getattr(options, name) for name in given} == given


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("rank", [0, -1, 1.5, "8", True, None], "at least 1"),
        ("alpha", [0, -1.0, math.inf, math.nan, "x"], "above 0 and finite"),
        ("share", [-0.1, 1.1, math.nan], "in [0, 1]"),
        ("part", [0, 1], "in (0, 1)"),
        ("weight", [-1, math.inf], "at least 0 and finite"),
        ("most", [10], "at most 9"),
        ("ranks", [(), (2, 2), (3, 1), (0, 1), 3], "rising numbers of at least 1"),
        ("levels", [(2, 3), (8, 2), ()], "rising numbers among 2, 4, 8"),
        ("bits", [6, "4"], "one of 4, 8"),
        ("depth", [0, "half", 1.5], "all, common or at least 1"),
        ("blocks", [(), (3, 0), "all"], "memory or numbers of at least 1"),
        ("rates", [(1,), (1, 0), (1, 2, 3)], "2 numbers above 0 and finite"),
        ("names", [{"a": 0}, {1: 1.0}, 1], "names, each with above 0 and finite"),
        ("deadline_s", [-1, math.nan], "at least 0"),
    ],
)
def test_a_wrong_option_is_named_with_what_must_hold(
    name: str, values: list[Any], words: str
) -> None:
    for value in values:
        with pytest.raises(ValueError, match="must be") as error:
            Options(**{name: value})
        assert str(error.value) == f"{name} must be {words}, got {value!r}"


def test_types_without_a_range_have_words_too() -> None:
    assert [in_words(hint) for hint in (int, float, str, bool, tuple[str, ...])] == [
        "a whole number",
        "a number",
        "a text",
        "true or false",
        "texts",
    ]
    above = Annotated[float, Gt(0)]
    lists = (tuple[int, ...], tuple[float, float], tuple[above, ...], tuple[above, above])
    assert [in_words(hint) for hint in lists] == [
        "whole numbers",
        "2 numbers",
        "numbers above 0",
        "2 numbers above 0",
    ]
