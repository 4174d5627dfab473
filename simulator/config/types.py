"""What the parts of a config are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    Tag,
)
from pydantic_core.core_schema import plain_serializer_function_ser_schema

from simulator.config.own_strategy import source_of
from simulator.config.paths import stay_inside

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]


PathOrName = Annotated[str, AfterValidator(stay_inside)]
Revision = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_-]|[./][A-Za-z0-9_-])*$", max_length=200)
]
"""A commit, branch or tag of a repository; never a path that leads out of a folder."""


def _as_range(value: Any) -> Any:
    return (value,) if isinstance(value, int | float) else value


def _rising(value: tuple[float, ...]) -> tuple[float, ...]:
    if len(value) not in (1, 2) or value[0] > value[-1]:
        raise ValueError(f"must be one share, or two that rise, got {list(value)}")
    return value


ShareRange = Annotated[tuple[Share, ...], BeforeValidator(_as_range), AfterValidator(_rising)]
"""One share for all, or a lower and an upper one between which each device draws its own."""


class Section(BaseModel):
    """A part of the config: no key but those named, and nothing changes once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class OneOf:
    """Annotates a field as a tagged union: ``kind`` names the class, other keys are its fields."""

    def __init__(self, kinds: Mapping[str, Any]) -> None:
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


def _to_mapping(value: Any) -> dict[str, Any]:
    source = source_of(value)
    return {
        "kind": value.kind,
        **({"source_sha256": source.sha256} if source else {}),
        **{f.name: getattr(value, f.name) for f in fields(value) if f.init},
    }


MAX_DEVICES = 10_000_000
MAX_S = 1e9  # about 32 years

Instant = Annotated[float, Field(ge=0, le=MAX_S)]
Length = Annotated[float, Field(gt=0, le=MAX_S)]
PerHour = Annotated[float, Field(ge=0, le=36_000)]
