"""Holds what is learned: LoRA factors, the task head, and updates merged into frozen weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from traces.arrays import Float32Array


class ModuleKey(NamedTuple):
    """A module key names one adapted linear layer; block 0 is next to the embedding."""

    block: int
    module: str


class Factors(NamedTuple):
    """Factors are A and B of LoRA for one layer, whose weight they change by ``scale * b @ a``.

    Row k of ``a`` and column k of ``b`` are the rank-1 term k.
    """

    a: Float32Array  # (R, in)
    b: Float32Array  # (out, R)


Product = Factors | Float32Array
"""The product B A of one layer without the scale, as factors or as a matrix (out, in)."""


@dataclass(frozen=True, eq=False)
class Merged:
    """A merge holds the product that, times the scale, was added to each frozen weight."""

    products: Mapping[ModuleKey, Product] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of every number and name in the merge."""
        sha = hashlib.sha256()
        for key, product in sorted(self.products.items(), key=lambda item: item[0]):
            for part in product if isinstance(product, Factors) else (product,):
                sha.update(f"{key.block}.{key.module}{part.shape}".encode())
                sha.update(np.ascontiguousarray(part).tobytes())
        return sha.hexdigest()


NOTHING_MERGED = Merged()


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter is all that a fine-tuned model has beside its pretrained weights.

    It holds the LoRA factors of every adapted layer, in the order of blocks and then of modules,
    and the tensors of the task head by name. ``scale`` is alpha / R, one constant for server and
    devices, so that the same factors mean the same weight update whatever number of terms a device
    holds. ``merged`` is what was added to the frozen weights meanwhile. All arrays are float32, and
    none of them is ever changed in place.
    """

    factors: Mapping[ModuleKey, Factors]
    head: Mapping[str, Float32Array]
    scale: float
    merged: Merged = NOTHING_MERGED

    @property
    def rank(self) -> int:
        """Return R, the number of rank-1 terms in each layer."""
        return int(next(iter(self.factors.values())).a.shape[0])

    @property
    def modules(self) -> tuple[str, ...]:
        """Return the adapted modules of a block, in the order of a ``TermGrid``'s second axis."""
        return tuple(key.module for key in self.factors if key.block == 0)

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of every number and name in the adapter."""
        sha = hashlib.sha256(repr(self.scale).encode())
        for key, factors in sorted(self.factors.items()):
            sha.update(f"{key.block}.{key.module}{factors.a.shape}{factors.b.shape}".encode())
            sha.update(np.ascontiguousarray(factors.a).tobytes())
            sha.update(np.ascontiguousarray(factors.b).tobytes())
        for name, values in sorted(self.head.items()):
            sha.update(f"{name}{values.shape}".encode())
            sha.update(np.ascontiguousarray(values).tobytes())
        if self.merged.products:
            sha.update(self.merged.digest.encode())
        return sha.hexdigest()
