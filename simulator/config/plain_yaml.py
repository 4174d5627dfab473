"""Reads and writes YAML as plain data: a value is what was typed, or it is refused.

PyYAML follows YAML 1.1, where ``010`` is 8, ``1_000`` is 1000, ``1:30`` is 90, ``no`` is false and
``1e3`` is a text. Here numbers are those of JSON, with a sign and a bare point allowed, truth
values are ``true`` and ``false``, and a scalar that the two readings do not share is an error. So
is a number that a double does not hold as it was typed, such as ``1e400``, which would be infinite.
Limits keep a small text from becoming a large tree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

import yaml

MAX_DEPTH = 50
MAX_VALUES = 1_000_000
"""The most values with each alias written out: nine lines of nested aliases make a billion."""

SAME_IN_ALL = {
    "int": re.compile(r"[-+]?(0|[1-9]\d*)", re.ASCII),
    "float": re.compile(
        r"[-+]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        re.ASCII,
    ),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "null": re.compile(r"null|Null|NULL|~|"),
    "merge": re.compile(r"<<"),
}
"""Patterns of unquoted scalars that mean the same in YAML 1.1 and 1.2, by YAML's tag."""

LOOKS_LIKE_A_NUMBER = re.compile(r"[-+]?(0[oxbOXB])?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9_]+)?")
FLOAT = "tag:yaml.org,2002:float"
UNSURE = "!unsure"
"""The tag of a scalar that means one thing in YAML 1.1 and another to whoever typed it."""


class Place(NamedTuple):
    """A place in a text is a line and a column, both counted from 1."""

    line: int
    column: int

    @property
    def in_words(self) -> str:
        """Return the place as it stands behind a message or a file's name."""
        return f", line {self.line}, column {self.column}"


def parse_yaml(text: str) -> Any:
    """Return what the text says, as mappings, lists, texts, numbers, truth values and None.

    Raises ValueError with a message of one line.
    """
    try:
        return yaml.load(text, Loader=_Limited)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = ", ".join(filter(None, [error.context, error.problem]))
        raise ValueError(f"must be valid YAML, got: {said}{_place(mark) if mark else ''}") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"must be valid YAML, got: {said}") from None


def key_places(text: str) -> dict[str, Place]:
    """Return where each key of a text stands, by its dotted name; so for each entry of a list.

    A key that is merged or aliased stands where it is written. Raises ValueError or YAMLError where
    the text is no valid YAML.
    """
    loader = _Limited(text)
    try:
        node = loader.get_single_node()
        return dict(_places(loader, node, "")) if node else {}
    finally:
        loader.dispose()


def dump_yaml(value: Any) -> str:
    """Return the value as block YAML that ``parse_yaml`` reads back as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


def dump_line(value: Any) -> str:
    """Return the value as YAML of one line that ``parse_yaml`` reads back as the same value."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**6)
    return text.removesuffix("...\n").strip()


class _SameInAll:
    """Reader and writer share this rule of what a scalar without quotes is."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)  # type: ignore[misc]  # of PyYAML's resolver
        if kind is not yaml.ScalarNode or not implicit[0]:
            return tag
        for name, pattern in SAME_IN_ALL.items():
            if pattern.fullmatch(value):
                return f"tag:yaml.org,2002:{name}"
        is_text = tag == yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG
        return tag if is_text and not LOOKS_LIKE_A_NUMBER.fullmatch(value) else UNSURE


class _Dumper(_SameInAll, yaml.SafeDumper):
    """This dumper puts quotes around a text that would not be read back as a text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _Limited(_SameInAll, yaml.SafeLoader):
    """This loader reads plain YAML, and refuses tags, deep nesting and keys that occur twice."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"values must nest at most {MAX_DEPTH} deep")
        event = self.peek_event()  # type: ignore[no-untyped-call]  # of PyYAML
        if getattr(event, "tag", None) is not None:
            raise ValueError(
                f"a value must have no tag, got {event.tag!r:.100}{_place(event.start_mark)}"
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_document(self) -> Any:
        node = super().compose_document()
        num_values = _num_values(node, {})
        if num_values > MAX_VALUES:
            raise ValueError(
                f"there must be at most {MAX_VALUES} values with every alias written out, got "
                f"{num_values:.0e}"
            )
        return node

    def compose_scalar_node(self, anchor: Any) -> Any:
        node = super().compose_scalar_node(anchor)
        if node.tag == UNSURE:
            raise ValueError(_unsure(node))
        if node.tag == FLOAT and not _is_held(node.value):
            raise ValueError(_not_held(node))
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands twice", key.start_mark
                    )
                seen.add(key.value)
        return node


def _unsure(node: yaml.ScalarNode) -> str:
    """Say what is not clear about a scalar, and how to make it so."""
    text = f"{node.value:.100}"
    return (
        f"{text} can be read in two ways: write a number in digits without leading zeros, '_' or "
        f"':' (8, 1000, 0.5, 1e-3), a truth value as true or false, and a text in quotes, as in "
        f"'{text}'{_place(node.start_mark)}"
    )


def _is_held(text: str) -> bool:
    """Return whether a double holds this number in every digit that was typed."""
    try:
        return text[-1].isalpha() or Decimal(text) == Decimal(repr(float(text)))
    except InvalidOperation:  # the exponent is too large even for Decimal
        return False


def _not_held(node: yaml.ScalarNode) -> str:
    nearest = float(node.value)
    return (
        f"{node.value:.100} must be a number that a double holds in every digit, of at most "
        f"1.79e308 and not lost as 0; the nearest is {nearest!r}{_place(node.start_mark)}"
    )


def _places(loader: _Limited, node: yaml.Node, prefix: str) -> Iterator[tuple[str, Place]]:
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)  # puts merged keys first, so that a key's own place counts
        inner: list[tuple[object, yaml.Node, yaml.Node]]
        inner = [(key.value, key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        inner = [(number, value, value) for number, value in enumerate(node.value)]
    else:
        return
    for name, start, value in inner:
        mark = start.start_mark
        yield f"{prefix}{name}", Place(mark.line + 1, mark.column + 1)
        yield from _places(loader, value, f"{prefix}{name}.")


def _place(mark: yaml.Mark) -> str:
    return Place(mark.line + 1, mark.column + 1).in_words


def _num_values(node: yaml.Node | None, known: dict[int, float]) -> float:
    """Return the number of values in a tree, as a float, since it may be astronomical."""
    if id(node) not in known:
        known[id(node)] = float("inf")  # the result for a node that contains itself
        children = node.value if isinstance(node, yaml.CollectionNode) else ()
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for pair in children for part in pair] if pairs else children
        known[id(node)] = 1.0 + sum(_num_values(part, known) for part in parts)
    return known[id(node)]
