"""Stores quantized codes, one or two to a byte, and turns them back into values."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from devices.vocabulary.number_formats import GROUP, GROUPS_AT_ONCE

UNIFORM_4 = tuple(float(code) for code in range(16))
"""The levels of 4-bit codes whose steps are equal."""

SMALLEST_STEP = 2.0**-24
"""The smallest scale that fp16 holds, subnormal; divides in place of one that became zero."""


def join_nibbles(codes: Tensor) -> Tensor:
    """Join (groups, 64) codes below 16 to (groups, 32) bytes, the first of two in the low bits."""
    pairs = codes.view(torch.int16)  # little-endian: second code * 256 + first
    return (pairs | (pairs >> 4)).to(torch.uint8)


def read_nibbles(stored: Tensor, levels: tuple[float, ...]) -> Tensor:
    """Look up the levels that joined codes stand for: (groups, 64), in fp32."""
    table = _pair_table(levels, stored.device)
    # One look-up gives both values of a byte: the table holds pairs of fp32, viewed as one fp64.
    pairs = table.index_select(0, stored.view(-1).int())
    return pairs.view(torch.float32).view(-1, GROUP)


def slices(num_groups: int) -> Iterator[slice]:
    """Give slices that cover all groups, ``GROUPS_AT_ONCE`` at a time."""
    for start in range(0, num_groups, GROUPS_AT_ONCE):
        yield slice(start, min(start + GROUPS_AT_ONCE, num_groups))


def decode(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    *,
    levels: tuple[float, ...],
    dtype: torch.dtype,
) -> Tensor:
    """Return the values of all codes, (groups, 64): level times the group's scale, plus its zero.

    ``levels`` are those of two codes in a byte; a code with a byte of its own stands for itself.
    Computed in fp32 and rounded to ``dtype`` once.
    """
    values = torch.empty(len(codes), GROUP, dtype=dtype, device=codes.device)
    for part in slices(len(codes)):
        values[part] = _decoded(
            codes[part], scale[part], zero[part] if zero is not None else None, levels
        )
    return values


def _decoded(
    codes: Tensor, scale: Tensor, zero: Tensor | None, levels: tuple[float, ...]
) -> Tensor:
    steps = codes.float() if codes.shape[1] == GROUP else read_nibbles(codes, levels)
    steps.mul_(scale.float())
    return steps if zero is None else steps.add_(zero.float())


@lru_cache(maxsize=8)
def _pair_table(levels: tuple[float, ...], device: torch.device) -> Tensor:
    values = torch.tensor(levels, dtype=torch.float32, device=device)
    pairs = torch.stack([values.repeat(16), values.repeat_interleave(16)], dim=1)  # (256, 2)
    return pairs.view(torch.float64).view(-1)
