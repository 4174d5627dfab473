"""Defines what happens to each rank-1 term on a device: held, trained, and how it is sent.

L is the number of blocks, M that of adapted modules in a block, and R that of rank-1 terms in a
module.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from traces.arrays import BitsArray, BoolArray

UPLOAD_BITS = (0, 2, 4, 8, 16, 32)
"""Bits per parameter of an uploaded term: 0 is not uploaded, 32 is sent without quantization."""

FactorName = Literal["a", "b"]
FactorUse = Literal[
    "both", "b_only", "fresh", "a_in_turn", "b_in_turn", "own_b", "controlled", "local"
]
"""Which factors of a term are sent and trained.

* ``both``: A and B are downloaded, trained and uploaded.
* ``b_only``: B alone is downloaded, trained and uploaded. A is drawn from a seed that all devices
  hold, and never changes.
* ``fresh``: nothing is downloaded, since A is drawn from a seed that comes with the plan and B is
  zero. Both are trained and uploaded.
* ``a_in_turn``, ``b_in_turn``: both are downloaded, and the one that is named is trained and
  uploaded.
* ``own_b``: both are trained, and A alone is downloaded and uploaded. B and the head stay on the
  device, and cross no wire.
* ``controlled``: both are downloaded, trained and uploaded, and each message has as many numbers
  again: the server's control variate on the way down, the change of the device's own on the way up.
* ``local``: both are trained, and neither they nor the head cross any wire: there is no message.
"""


class FactorWays(NamedTuple):
    """Factor ways say which factors of a term are downloaded, trained and uploaded."""

    downloaded: tuple[FactorName, ...]
    trained: tuple[FactorName, ...]
    uploaded: tuple[FactorName, ...]


FACTOR_WAYS: dict[FactorUse, FactorWays] = {
    "both": FactorWays(("a", "b"), ("a", "b"), ("a", "b")),
    "b_only": FactorWays(("b",), ("b",), ("b",)),
    "fresh": FactorWays((), ("a", "b"), ("a", "b")),
    "a_in_turn": FactorWays(("a", "b"), ("a",), ("a",)),
    "b_in_turn": FactorWays(("a", "b"), ("b",), ("b",)),
    "own_b": FactorWays(("a",), ("a", "b"), ("a",)),
    "controlled": FactorWays(("a", "b"), ("a", "b"), ("a", "b")),
    "local": FactorWays((), ("a", "b"), ()),
}


@dataclass(frozen=True, eq=False)
class TermGrid:
    """A term grid says what happens to each rank-1 term on one device, in arrays (L, M, R).

    Modules are in the order of ``ModelSpec.targets``. Term indices are the server's and are never
    renumbered. A term that is not ``held`` is truncated: it is not downloaded and no part of the
    forward pass. A term that is held and not ``trained`` is frozen. ``upload_bits`` are among
    ``UPLOAD_BITS``, and 0 wherever a term is not trained. ``use`` holds for all terms. The head
    is always trained, and uploaded at ``head_bits`` where it is sent. Raises ValueError where the
    arrays contradict each other.
    """

    held: BoolArray
    trained: BoolArray
    upload_bits: BitsArray
    use: FactorUse = "both"
    head_bits: int = 32

    def __post_init__(self) -> None:
        if not self.held.shape == self.trained.shape == self.upload_bits.shape:
            raise ValueError("held, trained and upload_bits must have one shape (L, M, R)")
        if (self.trained & ~self.held).any():
            raise ValueError("a term must be held to be trained")
        if ((self.upload_bits > 0) & ~self.trained).any():
            raise ValueError("a term must be trained to be uploaded")
        if unknown := set(np.unique(self.upload_bits).tolist()) - set(UPLOAD_BITS):
            raise ValueError(f"upload bits must be among {UPLOAD_BITS}, got {min(unknown)}")
        if self.head_bits not in UPLOAD_BITS[1:]:
            raise ValueError(f"head_bits must be among {UPLOAD_BITS[1:]}, got {self.head_bits}")

    @staticmethod
    @lru_cache(maxsize=256)
    def top_blocks(shape: tuple[int, int, int], depth: int, upload_bits: int = 32) -> TermGrid:
        """Return the grid that holds all terms, and trains and uploads those of the top blocks.

        Equal arguments get the same grid, whose arrays are read-only.
        """
        held, trained = np.ones(shape, dtype=bool), np.zeros(shape, dtype=bool)
        trained[shape[0] - depth :] = True
        bits = np.where(trained, upload_bits, 0).astype(np.uint8)
        for values in (held, trained, bits):
            values.flags.writeable = False
        return TermGrid(held, trained, bits)

    @classmethod
    def many(cls, held: BoolArray, trained: BoolArray, upload_bits: BitsArray) -> list[TermGrid]:
        """Return the grids of n devices, given as arrays (n, L, M, R). Raises as for one."""
        cls(held, trained, upload_bits)  # checks all grids at once, since rules are by element
        grids = []
        for parts in zip(held, trained, upload_bits, strict=True):
            grid = object.__new__(cls)
            grid.__dict__.update(zip(("held", "trained", "upload_bits"), parts, strict=True))
            grids.append(grid)
        return grids

    @property
    def downloaded_factors(self) -> tuple[FactorName, ...]:
        """Return the factors of a held term that are downloaded."""
        return FACTOR_WAYS[self.use].downloaded

    @property
    def trained_factors(self) -> tuple[FactorName, ...]:
        """Return the factors of a trained term that are trained."""
        return FACTOR_WAYS[self.use].trained

    @property
    def uploaded_factors(self) -> tuple[FactorName, ...]:
        """Return the factors of an uploaded term that are uploaded."""
        return FACTOR_WAYS[self.use].uploaded

    @property
    def sends_head(self) -> bool:
        """Return True if the head is downloaded and uploaded; else it stays on the device."""
        return self.use not in ("own_b", "local")

    @property
    def crosses_wire(self) -> bool:
        """Return True if there are messages at all."""
        return self.use != "local"

    @property
    def is_read_only(self) -> bool:
        """Return True if the arrays are read-only, as those of ``top_blocks`` are."""
        return not (
            self.held.flags.writeable
            or self.trained.flags.writeable
            or self.upload_bits.flags.writeable
        )

    @property
    def has_controls(self) -> bool:
        """Return True if the device corrects its gradients by control variates, which are sent."""
        return self.use == "controlled"

    @property
    def uploaded(self) -> BoolArray:
        """Return (L, M, R): the terms that the server gets back."""
        return self.upload_bits > 0
