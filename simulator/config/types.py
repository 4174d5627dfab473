"""Defines the types that the sections of a config share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, ClassVar, Union, get_args

from annotated_types import Ge, Gt, Le
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    GetCoreSchemaHandler,
    Tag,
)
from pydantic_core import to_jsonable_python
from pydantic_core.core_schema import plain_serializer_function_ser_schema

from simulator.config.own_strategy import source_of
from simulator.config.paths import path_or_name
from traces.options import LEFT_OUT, Options, PartialShare, Rule, option_hints

Name = Annotated[
    str,
    Rule(
        re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}").fullmatch,
        "1 to 64 letters, digits, '.', '_' and '-' of ASCII, the first a letter or digit",
    ),
]
Title = Annotated[
    str,
    Rule(
        lambda text: 1 <= len(text) <= 80 and text.isprintable() and text[0].isalnum(),
        "1 to 80 printable characters, the first a letter or digit",
    ),
]
Count = Annotated[int, Ge(1), Le(1_000_000_000)]
PathOrName = Annotated[str, AfterValidator(path_or_name)]
Revision = Annotated[
    str,
    Rule(
        re.compile(r"(?=.{1,200}$)[A-Za-z0-9]([A-Za-z0-9_-]|[./][A-Za-z0-9_-])*").fullmatch,
        "a commit, branch or tag: at most 200 letters, digits, '-', '_' and single '.' or '/' "
        "between them",
    ),
]
"""A commit, branch or tag of a repository; never a path that leads out of a folder."""
DataPart = Annotated[
    str,
    Rule(
        re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,99}").fullmatch,
        "a configuration or split: 1 to 100 letters, digits, '_', '.', '+', '=' and '-'",
    ),
]
"""A configuration or split of a data set; never a path that leads out of a folder."""


def as_range(value: Any) -> Any:
    """Return ``0.5`` as ``[0.5]``, for which it is short."""
    return (value,) if isinstance(value, int | float) else value


def as_source(value: Any) -> Any:
    """Return ``link: lte`` as ``link: {source: lte}``, for which it is short."""
    return {"source": value} if isinstance(value, str | int | float) else value


def _rising(value: tuple[float, ...]) -> tuple[float, ...]:
    if len(value) not in (1, 2) or value[0] > value[-1]:
        raise ValueError(f"must be one share, or two that rise, got {list(value)}")
    return value


Shares = tuple[PartialShare, ...]
ShareRange = Annotated[Shares, BeforeValidator(as_range), AfterValidator(_rising)]
"""One share for all, or a lower and an upper one between which each device draws its own."""


class Section(Options):
    """A section is a frozen dataclass of the config that has no key but its fields."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


class OneOf:
    """This annotation of a field says that ``kind`` names its class; other keys are its fields."""

    def __init__(self, kinds: Mapping[str, Any]) -> None:
        self.kinds = kinds
        choices = [
            Annotated[cls, BeforeValidator(_without_kind), Tag(kind)] for kind, cls in kinds.items()
        ]
        self._union = Annotated[Union[tuple(choices)], Discriminator(_kind)]  # noqa: UP007

    def __get_pydantic_core_schema__(self, _: Any, handler: GetCoreSchemaHandler) -> Any:
        schema: Any = handler.generate_schema(self._union)
        schema["serialization"] = plain_serializer_function_ser_schema(_to_mapping)
        return schema


def _kind(value: Any) -> str | None:
    return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)


def _without_kind(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if key != "kind"}
    return value


def as_plain(value: Any, *, whole: bool = False) -> Any:
    """Return a section as plain data.

    Keys that stand at None are left out and, unless the data is to be ``whole``, those marked as
    ``LEFT_OUT`` that stand at their default.
    """
    if is_dataclass(value) and hasattr(value, "kind") and "kind" not in option_hints(type(value)):
        return to_jsonable_python(_to_mapping(value))
    if is_dataclass(value):
        hints = option_hints(type(value))
        named = {f.name: (f, getattr(value, f.name)) for f in fields(value) if f.init}
        return {
            name: as_plain(inner, whole=whole)
            for name, (field, inner) in named.items()
            if inner is not None
            and (whole or LEFT_OUT not in get_args(hints[name]) or inner != field.default)
        }
    if isinstance(value, tuple):
        return [as_plain(inner, whole=whole) for inner in value]
    if isinstance(value, dict):
        return {name: as_plain(inner, whole=whole) for name, inner in value.items()}
    return to_jsonable_python(value)


def _to_mapping(value: Any) -> dict[str, Any]:
    source = source_of(value)
    return {
        "kind": value.kind,
        **({"source_sha256": source.sha256} if source else {}),
        **{f.name: getattr(value, f.name) for f in fields(value) if f.init},
    }


MAX_DEVICES = 10_000_000
MAX_S = 1e9  # the latest instant of a config, about 32 years

Instant = Annotated[float, Ge(0), Le(MAX_S)]
Length = Annotated[float, Gt(0), Le(MAX_S)]
PerHour = Annotated[float, Ge(0), Le(36_000)]
