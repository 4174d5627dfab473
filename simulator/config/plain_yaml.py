"""Reads YAML as plain data, within limits that keep a small text from becoming a large tree."""

from __future__ import annotations

from typing import Any

import yaml

MAX_DEPTH = 50
MAX_VALUES = 1_000_000
"""Counted as if each alias were written out: nine lines of aliases of aliases make a billion."""


def parse_yaml(text: str) -> Any:
    """What the text says: mappings, lists, texts, numbers, dates.

    Raises ValueError with a message of one line.
    """
    try:
        return yaml.load(text, Loader=_Limited)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"is no valid YAML: {said}") from None


class _Limited(yaml.SafeLoader):
    """Plain YAML in which a key may not stand twice; the second would win in silence."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"values must nest at most {MAX_DEPTH} deep")
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


def _num_values(node: yaml.Node | None, known: dict[int, float]) -> float:
    """Values in the tree below, a float since it may be astronomical."""
    if id(node) not in known:
        known[id(node)] = float("inf")  # for the node that holds itself
        children = node.value if isinstance(node, yaml.CollectionNode) else ()
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for pair in children for part in pair] if pairs else children
        known[id(node)] = 1.0 + sum(_num_values(part, known) for part in parts)
    return known[id(node)]
