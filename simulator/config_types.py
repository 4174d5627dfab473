"""What the parts of a config are made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Count = Annotated[int, Field(ge=1)]


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
