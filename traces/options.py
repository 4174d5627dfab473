"""States the range of an option once, in its annotation, and holds a dataclass to it.

``rank: Annotated[int, Ge(1)] = 8`` says of a field of a frozen dataclass what may stand there.
A class that inherits from ``Options`` holds Python code to that, and a config is read by the same
annotations. So the range of an option stands nowhere else.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, partial
from itertools import pairwise
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen, Predicate


@dataclass(frozen=True)
class Rule(Predicate):
    """A rule is what must hold of an option beside a range: a test, and the words for it."""

    words: str


def rises(numbers: Sequence[float]) -> bool:
    """Return whether there is a number, and each is above the one before."""
    return len(numbers) > 0 and all(low < high for low, high in pairwise(numbers))


class LeftOut:
    """A config is written without a key that is marked by this while it stands at its default.

    So a run that was made before there was the key keeps its hash and its config.
    """


LEFT_OUT = LeftOut()

FINITE = Rule(math.isfinite, "finite")
RISING = Rule(rises, "rising")

Count = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0), FINITE]
NotNegative = Annotated[float, Ge(0), FINITE]
Share = Annotated[float, Ge(0), Le(1)]
"""A share of something, where none of it is possible."""
PartialShare = Annotated[float, Gt(0), Le(1)]
"""A share of something, at least a part of it."""
RisingCounts = Annotated[tuple[Count, ...], RISING]


class Options(Protocol):
    """Options are a frozen dataclass, each of whose fields is held to its annotation.

    A class with rules of its own overrides ``__post_init__``, and calls ``check_options`` first.
    """

    def __post_init__(self) -> None:
        """Raise ValueError for the first field that breaks its annotation."""
        check_options(self)


def check_options(options: Any) -> None:
    """Hold the fields of a dataclass to the types, choices and ranges of their annotations.

    A field that stands at its default is not looked at. Raises ValueError that says what must hold
    of the first field that breaks them, and what was given.
    """
    hints = option_hints(type(options))
    for field in fields(options):
        given = getattr(options, field.name)
        if field.init and given is not field.default and not holds(hints[field.name], given):
            raise ValueError(f"{field.name} must be {in_words(hints[field.name])}, got {given!r}")


def option_hints(cls: Any) -> Mapping[str, Any]:
    """Return the annotation of each field that the constructor of a dataclass takes."""
    hints = _all_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls) if field.init}


_all_hints: Callable[[Any], Mapping[str, Any]] = cache(partial(get_type_hints, include_extras=True))


def holds(hint: Any, given: object) -> bool:
    """Return whether a value is of the type, among the choices and in the range of an annotation.

    Numbers, texts, truth values, tuples and dicts are looked into; any other type admits all.
    """
    if get_origin(hint) is Annotated:
        base, *rules = get_args(hint)
        return holds(base, given) and all(_follows(rule, given) for rule in rules)
    if get_origin(hint) is Literal:
        return given in get_args(hint)
    if is_union(hint):
        return any(holds(arm, given) for arm in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(given, tuple | list) and _all_hold(get_args(hint), given)
    if get_origin(hint) is dict:
        key, value = get_args(hint)
        return isinstance(given, dict) and all(
            holds(key, k) and holds(value, v) for k, v in given.items()
        )
    return hint not in _TYPES or (
        isinstance(given, _TYPES[hint]) and (hint is bool or not isinstance(given, bool))
    )


def in_words(hint: Any) -> str:
    """Return what must hold of a value of this annotation, to be read after "must be"."""
    if get_origin(hint) is Annotated:
        base, *rules = get_args(hint)
        if get_origin(base) is tuple:
            named = [rule.words for rule in rules if isinstance(rule, Rule)]
            return " ".join([*named, in_words(base)])
        if get_origin(base) is dict:
            return in_words(base)
        return " and ".join(_rules_in_words(rules)) or in_words(base)
    if is_union(hint):
        arms = [arm for arm in get_args(hint) if arm is not types.NoneType]
        choices = [str(one) for arm in arms for one in get_args(arm) if get_origin(arm) is Literal]
        others = [in_words(arm) for arm in arms if get_origin(arm) is not Literal]
        return " or ".join([", ".join(choices), *others] if choices else others)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) is tuple:
        return _tuple_in_words(get_args(hint))
    if get_origin(hint) is dict:
        return f"names, each with {in_words(get_args(hint)[1])}"
    return _NAMES.get(hint, "of its type")


def is_union(hint: Any) -> bool:
    """Return whether an annotation is a union, in either of Python's notations."""
    return get_origin(hint) in (Union, types.UnionType)


_TYPES: dict[Any, type] = {
    int: Integral,
    float: Real,
    str: str,
    bool: bool,
    types.NoneType: types.NoneType,
}
_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _follows(rule: object, given: Any) -> bool:
    match rule:
        case Ge():
            return bool(given >= rule.ge)
        case Gt():
            return bool(given > rule.gt)
        case Le():
            return bool(given <= rule.le)
        case Lt():
            return bool(given < rule.lt)
        case MinLen():
            return len(given) >= rule.min_length
        case MaxLen():
            return len(given) <= rule.max_length
        case Predicate():
            return bool(rule.func(given))
    return True  # other annotations do not limit the value


def _all_hold(hints: tuple[Any, ...], given: Sequence[object]) -> bool:
    if hints[1:] == (...,):
        return all(holds(hints[0], one) for one in given)
    return len(given) == len(hints) and all(map(holds, hints, given))


def _rules_in_words(rules: Sequence[object]) -> Iterator[str]:
    """Yield the words of a range, then those of each other rule."""
    low = next((rule for rule in rules if isinstance(rule, Ge | Gt)), None)
    high = next((rule for rule in rules if isinstance(rule, Le | Lt)), None)
    match low, high:
        case ((Ge() | Gt()), (Le() | Lt())):
            begin = f"[{_plain(low.ge)}" if isinstance(low, Ge) else f"({_plain(low.gt)}"
            end = f"{_plain(high.le)}]" if isinstance(high, Le) else f"{_plain(high.lt)})"
            yield f"in {begin}, {end}"
        case (Ge(), None):
            yield f"at least {_plain(low.ge)}"
        case (Gt(), None):
            yield f"above {_plain(low.gt)}"
        case (None, Le()):
            yield f"at most {_plain(high.le)}"
        case (None, Lt()):
            yield f"below {_plain(high.lt)}"
    yield from _lengths_in_words(rules)
    yield from (rule.words for rule in rules if isinstance(rule, Rule))


def _lengths_in_words(rules: Sequence[object]) -> Iterator[str]:
    """Yield the words of the lengths that a text may have; MinLen stands before MaxLen."""
    shortest = [f"at least {rule.min_length}" for rule in rules if isinstance(rule, MinLen)]
    longest = [f"at most {rule.max_length}" for rule in rules if isinstance(rule, MaxLen)]
    if shortest or longest:
        yield f"a text of {' and '.join([*shortest, *longest])} characters"


def _plain(number: Any) -> str:
    """Return a number in digits, without the point of a whole one."""
    return f"{number:.15g}" if isinstance(number, float) else str(number)


def _tuple_in_words(hints: tuple[Any, ...]) -> str:
    each = hints[0]
    if get_origin(each) is Literal:
        return f"numbers among {', '.join(map(str, get_args(each)))}"
    if each is str:
        return "texts"
    count = "" if hints[1:] == (...,) else f"{len(hints)} "
    if each in (int, float):
        return f"{count}{'whole numbers' if each is int else 'numbers'}"
    words = in_words(each)
    joint = " " if words.startswith(("in ", "above ", "below ")) else " of "
    return f"{count}numbers{joint}{words}"
