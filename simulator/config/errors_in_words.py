"""Says in one line each what is wrong with the values of a config, by pydantic's errors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from types import NoneType
from typing import Any

from simulator.config.keys import (
    RATE,
    Keys,
    is_section,
    kind_in,
    kinds_of,
    locate,
    members,
    names_of,
)
from simulator.config.problems import shown, shown_keys
from simulator.config.schema import RunConfig
from traces.options import in_words
from traces.text import did_you_mean

OUT_OF_RANGE = (
    *("greater_than", "greater_than_equal", "less_than", "less_than_equal"),
    *("finite_number", "predicate_failed"),
)
"""pydantic's names for errors whose message is made from the range in the annotation."""

NO_NUMBER = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
}
"""pydantic's names for errors that a value is not a number of the right kind."""

MORE = {
    "training": ", or keys and values such as learning_rate",
    "profile": ", the name of a profile or a TOML file (figures of your own stand at device)",
}
"""The words that a message adds for some keys whose value is of another type."""

UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")
"""pydantic's names for the error that a key is unknown."""


def problem_line(error: Any, model: type[RunConfig]) -> str:
    """Return one line that says what must hold, what was given and at which key."""
    kind, given = error["type"], error["input"]
    if kind in UNKNOWN_KEY:
        return _unknown_key(error["loc"], model)
    where, hints = locate(model, error["loc"])
    name = shown_keys(where).replace("strategy_title", "strategy.title") or "the config"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        kinds = [kind for hint in hints for arm in members(hint) for kind in kinds_of(arm)]
        own = " or path/to/your.py:Class" if name == "strategy" else ""
        if given in kinds:
            example = f"{{ kind: {given} }}"
            return f"{name} must hold keys and values, as in {example}, got {shown(given)}"
        wrong = kind_in(given)
        near = did_you_mean(wrong, kinds) if isinstance(wrong, str) else ""
        return f"{name}.kind must be one of {', '.join(kinds)}{own}, got {shown(wrong)}{near}"
    if kind in ("missing", "missing_argument"):
        return f"{name} must be given"
    if kind in ("value_error", "assertion_error"):
        text = str(error["ctx"]["error"])
        arms = [arm for hint in hints for arm in members(hint)]
        sections = [one for arm in arms for one in kinds_of(arm).values() or [arm]]
        keys = {key for one in sections if is_section(one) for key in names_of(one)}
        # A section's own check may begin with the key that is wrong; the key is then named in full.
        is_of_key = text.split(" ", 1)[0] in keys
        return f"{name}.{text}" if is_of_key else f"{name}: {text}"
    if kind in ("model_type", "dataclass_type"):
        return f"{name} must hold keys and values, got {shown(given)}"
    if kind in OUT_OF_RANGE or _is_choice(hints[0]):
        return f"{name} must be {in_words(hints[0])}, got {shown(given)}"
    if kind in NO_NUMBER:
        what, rule = NO_NUMBER[kind], in_words(hints[0])
        return f"{name} must be {what} {rule.removeprefix(what).strip()}".rstrip() + (
            f", got {shown(given)}"
        )
    if kind == "too_short":
        return f"{name} must have at least {error['ctx']['min_length']} entry, got {shown(given)}"
    if kind == "tuple_type":
        return f"{name} must be a list, got {shown(given)}"
    rule = error["msg"].removeprefix("Input should ").removeprefix("String should ")
    rule = rule.replace("a valid string", "a text")
    known = re.findall(r"'([^']*)'", rule) if kind == "literal_error" else []
    near = did_you_mean(given, known)
    return f"{name} must {rule}{MORE.get(name.rpartition('.')[2], '')}, got {shown(given)}{near}"


def keys_of(error: Any, model: type[RunConfig]) -> Keys:
    """Return the file's keys that lead to what an error of pydantic's is about."""
    place = error["loc"]
    if error["type"] in UNKNOWN_KEY:
        return [*locate(model, place[:-1])[0], place[-1]]
    return locate(model, place)[0]


def _is_choice(hint: Any) -> bool:
    """Return whether a value may be of one of several plain types, each of which reports."""
    arms = [arm for arm in members(hint) if arm is not NoneType]
    return len(arms) > 1 and not any(is_section(arm) or kinds_of(arm) for arm in arms)


def _unknown_key(place: Sequence[str | int], model: type[RunConfig]) -> str:
    where, hints = locate(model, place[:-1])
    sections = [arm for hint in hints for arm in members(hint) if is_section(arm)]
    valid = list(dict.fromkeys(name for section in sections for name in names_of(section)))
    valid += ["strategies"] if not where else ["title", RATE] if where == ["strategy"] else []
    inside = shown_keys(where) or "a config"
    near = did_you_mean(place[-1], valid) or f"; {inside} has {', '.join(valid)}"
    return f"{shown_keys([*where, place[-1]])} is no key{near}"


def altered(given: Any, read: Any, where: Sequence[str] = ()) -> Iterator[str]:
    """Yield a problem for each value that pydantic took for one of another type.

    It reads the text "008" and the truth value true as the numbers 8 and 1, where a number is due.
    """
    if isinstance(read, dict) and isinstance(given, dict):
        for key in given:
            if key in read:
                yield from altered(given[key], read[key], [*where, str(key)])
    elif isinstance(read, list) and isinstance(given, list | tuple):
        for place, pair in enumerate(zip(given, read, strict=False)):
            yield from altered(*pair, [*where, str(place)])
    elif isinstance(read, dict | list):  # the short form of a section or list was given
        inner = read.get("source") if isinstance(read, dict) else read[0] if read else None
        if inner is not None and not isinstance(inner, dict | list):
            yield from altered(given, inner, where)
    elif read is not None and _type(given) != _type(read):
        yield f"{shown_keys(where)} must be {_type(read)}, got {_type(given)}, {shown(given)}"
    elif _type(read) == "a number" and given != read:
        yield f"{shown_keys(where)} must be a number that a double holds, got {shown(given)}"


def _type(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    return "a text" if isinstance(value, str) else f"a {type(value).__name__}"
