"""Says what each key of a config means, from the types, ranges and docstrings that hold it."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BeforeValidator

from algorithms.registry import STRATEGIES
from simulator.config.keys import is_section, kinds_of, members
from simulator.config.plain_yaml import dump_line
from simulator.config.schema import RunConfig
from simulator.config.types import Title, as_plain, as_range, as_source
from traces.options import in_words, is_union, option_hints

UNITS = {
    "_s": "s",
    "_j": "J",
    "_w": "W",
    "_m": "m",
    "_db": "dB",
    "_bytes": "bytes",
    "_mhz": "MHz",
    "mbps": "Mbit/s",
    "per_hour": "1/h",
    "max_length": "tokens",
}
"""Units by the ending of a key."""

PAGE_HEAD = """\
# Every key of a config

What may stand at each key of an experiment's YAML, with its range, default and unit. The page is
written from the code by `fedclock explain --page`, so it cannot differ from what is enforced;
`fedclock explain KEY` prints one entry, and `fedclock explain --schema > fedclock.schema.json` a
JSON schema by which editors complete and check a config. [conditions.md](conditions.md) tells more
of devices and faults, [algorithms.md](algorithms.md) of strategies, pacings and selections.

A heading names the keys at which a section may stand: `*` is an entry of a list or a name, and a
word in parentheses is the `kind` that chooses the section. A relative path starts at the folder
of the YAML that names it, in `--set` too.

"""


STRATEGY_TITLE = "The name for readers in tables and figures; no run depends on it."
"""The meaning of the key ``title`` that every strategy's section may have."""


class Entry(NamedTuple):
    """An entry of the reference tells of one key."""

    key: str
    may_be: str
    default: str
    unit: str
    text: str


@dataclass(frozen=True)
class Part:
    """A part of the reference is a section: where it may stand, what it is for, and its keys."""

    places: tuple[str, ...]
    """The keys whose value it may be; one of a chosen kind reads ``strategy (fedquad)``."""
    text: str
    entries: tuple[Entry, ...]


def reference() -> list[Part]:
    """Return every section that a config may have, each once, in the order of the config."""
    places: dict[type, list[str]] = {RunConfig: [""]}
    waiting: list[type] = [RunConfig]
    sections = []
    while waiting:
        section = waiting.pop(0)
        inner: list[type] = []
        for name, hint in option_hints(section).items():
            for below, kind in _sections(hint):
                if below not in places:
                    inner.append(below)
                key = ".".join(filter(None, (_base(places[section][0]), name)))
                many = ".*" if get_origin(_bare(hint)) in (tuple, dict) else ""
                place = f"{key}{many}" + (f" ({kind})" if kind else "")
                places.setdefault(below, []).append(place)
        waiting = inner + waiting
        sections.append(section)
    return [
        Part(tuple(dict.fromkeys(places[section])), _first_line(section), tuple(_entries(section)))
        for section in sections
    ]


def explained(key: str) -> list[tuple[str, Entry]]:
    """Return the entries of a key, each with the place that it stands at; none where it is no key.

    ``key`` may leave out the beginning: ``mbps`` finds that of links and that of cells.
    """
    wanted = [part for part in key.split(".") if part != "*" and not part.isdigit()]
    found = []
    for part in reference():
        for place in part.places:
            for entry in part.entries:
                full = [p for p in _base(place).split(".") if p and p != "*"] + [entry.key]
                if full[-len(wanted) :] == wanted:
                    found.append((".".join(filter(None, (place, entry.key))), entry))
    return found


def as_page() -> str:
    """Return the reference as a page of the docs: a heading and a table for each part."""
    return PAGE_HEAD + "\n".join(_part_as_markdown(part) for part in reference())


def option_docs(section: type) -> Mapping[str, str]:
    """Return the docstring of each field of a dataclass, as it stands below the field.

    A field without one has that of a base class, where a property of its name has one too.
    """
    found: dict[str, str] = {}
    for base in reversed(section.__mro__):
        found |= dict(_properties(base))
        found |= dict(_docstrings(base))
    return {name: found.get(name, "") for name in option_hints(section)}


def _part_as_markdown(part: Part) -> str:
    title = ", ".join(f"`{place}`" for place in part.places if place) or "The config"
    rows = [
        f"| `{one.key}` | {_cell(one.may_be)} | {_cell(one.default)} | {one.unit} "
        f"| {_cell(one.text)} |"
        for one in part.entries
    ]
    head = "| key | what may stand there | default | unit | what it says |\n|---|---|---|---|---|"
    table = "\n".join([head, *rows]) + "\n" if rows else ""
    return f"## {title}\n\n{part.text}\n\n{table}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("``", "`").replace("*", "\\*")


def _entries(section: type) -> Iterator[Entry]:
    docs, hints = option_docs(section), option_hints(section)
    if section in STRATEGIES.values():
        yield Entry("title", may_be(Title), "none", "", STRATEGY_TITLE)
    for field in fields(section):
        if field.init:
            yield Entry(
                field.name, may_be(hints[field.name]), _default(field), _unit(field.name),
                docs[field.name],
            )  # fmt: skip


def _default(field: Any) -> str:
    if field.default is not MISSING:
        value = as_plain(field.default)
        return "" if isinstance(value, dict) else "none" if value is None else dump_line(value)
    return "must be given" if field.default_factory is MISSING else ""


def _unit(name: str) -> str:
    return next((unit for ending, unit in UNITS.items() if name.endswith(ending)), "")


def may_be(hint: Any) -> str:
    """Return in words what may stand at a key: its type with its range or choices."""
    kinds = [one for arm in members(hint) for one in kinds_of(arm).items()]
    if kinds:
        return _kinds_in_words(dict(kinds))
    bare = _bare(hint)
    if is_union(bare):
        arms = [may_be(arm) for arm in get_args(bare) if arm is not type(None)]
        return ", or ".join(arms)
    if is_section(bare):
        return "a section, or its source alone" if _is_short(hint, as_source) else "a section"
    if get_origin(bare) is Literal:
        return ", ".join(map(str, get_args(bare)))
    if get_origin(bare) is dict:
        return f"names, each with {may_be(get_args(bare)[1])}"
    if get_origin(bare) is tuple:
        if is_section(_bare(get_args(bare)[0])):
            return "a list of sections"
        alone = "one number, or " if _is_short(hint, as_range) else ""
        return f"{alone}a list: {_words(hint)}"
    words = _words(hint)
    noun = {int: "a whole number", float: "a number"}.get(bare, "")
    return words if not noun or words == noun else f"{noun} {words}"


def _kinds_in_words(kinds: Mapping[str, Any]) -> str:
    """Return what may stand where a kind or a form chooses among several types."""
    if all(isinstance(getattr(arm, "kind", None), str) for arm in kinds.values()):
        return f"a section of kind {', '.join(kinds)}"
    words = dict.fromkeys("a section" if is_section(arm) else may_be(arm) for arm in kinds.values())
    return ", or ".join(words)


def _words(hint: Any) -> str:
    """Return the words for an annotation whose None means that the key is left out."""
    arms = [arm for arm in get_args(hint) if arm is not type(None)] if is_union(hint) else [hint]
    return in_words(arms[0]) if len(arms) == 1 else in_words(hint)


def _is_short(hint: Any, reader: Any) -> bool:
    """Return whether a value may be given in a short form that this function reads."""
    if is_union(hint):
        return any(_is_short(arm, reader) for arm in get_args(hint))
    rules = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return any(isinstance(rule, BeforeValidator) and rule.func is reader for rule in rules)


def _bare(hint: Any) -> Any:
    """Return an annotation without its metadata, and without the None of an optional key."""
    if get_origin(hint) is Annotated:
        return _bare(get_args(hint)[0])
    if is_union(hint):
        arms = [arm for arm in get_args(hint) if arm is not type(None)]
        return _bare(arms[0]) if len(arms) == 1 else hint
    return hint


def _sections(hint: Any) -> Iterator[tuple[type, str]]:
    """Yield the sections that may stand under a key, each with the kind that chooses it, if any."""
    for arm in members(hint):
        if kinds := kinds_of(arm):
            for kind, chosen in kinds.items():
                if is_section(chosen):
                    by_kind = isinstance(getattr(chosen, "kind", None), str)
                    yield chosen, kind if by_kind and "kind" not in option_hints(chosen) else ""
        elif is_section(arm):
            yield arm, ""
        elif get_origin(arm) in (tuple, dict):
            yield from _sections(get_args(arm)[0 if get_origin(arm) is tuple else 1])


def _base(place: str) -> str:
    return place.partition(" (")[0]


def _first_line(section: type) -> str:
    return (inspect.getdoc(section) or "").partition("\n")[0].replace("``", "`")


def _properties(base: type) -> Iterator[tuple[str, str]]:
    for name, value in vars(base).items():
        if isinstance(value, property) and value.__doc__:
            yield name, " ".join(value.__doc__.split())


@cache
def _source(base: Any) -> ast.ClassDef | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
    except (OSError, TypeError):  # the class was made by a program and has no source
        return None
    return tree.body[0] if isinstance(tree.body[0], ast.ClassDef) else None


def _docstrings(base: type) -> Iterator[tuple[str, str]]:
    """Yield each field of a class body with the docstring on the lines below it."""
    source = _source(base)
    body = source.body if source else []
    for field, below in pairwise(body):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                yield name, " ".join(text.split())
