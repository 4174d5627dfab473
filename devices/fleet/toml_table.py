"""TOML tables whose errors say where what is wrong stands."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TomlTable:
    """A TOML table that knows where it stands, so that errors can say so."""

    where: str
    values: Mapping[str, Any]  # whatever TOML holds, until one of the methods has checked it

    def check_keys(self, required: Collection[str]) -> None:
        missing = [key for key in required if key not in self.values]
        unknown = [key for key in self.values if key not in required]
        if missing or unknown:
            found = [f"no {key}" for key in missing] + unknown
            raise ValueError(
                f"{self.where} must have the keys {', '.join(required)}, got {', '.join(found)}"
            )

    def text(self, key: str, choices: Collection[str] = ()) -> str:
        value = self.values[key]
        if not isinstance(value, str) or not value or (choices and value not in choices):
            wanted = f"one of {', '.join(choices)}" if choices else "a text"
            raise ValueError(f"{self.where}: {key} must be {wanted}, got {value!r}")
        return value

    def number(self, key: str, largest: float = math.inf) -> float:
        """A finite number in (0, largest]."""
        value = self.values[key]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and math.isfinite(value) and 0 < value <= largest):
            limit = "" if math.isinf(largest) else f" and at most {largest:g}"
            raise ValueError(f"{self.where}: {key} must be a number above 0{limit}, got {value!r}")
        return float(value)

    def table(self, key: str, required: Collection[str] = ()) -> TomlTable:
        """The table at ``key``, with exactly the keys in ``required`` where any are."""
        value = self.values[key]
        if not isinstance(value, Mapping):
            raise ValueError(f"{self.where}: {key} must be a table, got {value!r}")
        table = TomlTable(f"{self.where}: {key}", value)
        if required:
            table.check_keys(required)
        return table

    def tables(self, key: str) -> list[TomlTable]:
        value = self.values[key]
        is_list = isinstance(value, list) and all(isinstance(item, Mapping) for item in value)
        if not is_list or not value:
            raise ValueError(f"{self.where}: {key} must be a list of tables, got {value!r}")
        return [
            TomlTable(f"{self.where}: {key} {item.get('name', number)}", item)
            for number, item in enumerate(value, start=1)
        ]
