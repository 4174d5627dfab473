"""Adds up products that are merged into frozen weights.

A sum is kept as LoRA factors while they hold fewer numbers than the matrix, and then as the matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from devices.vocabulary.adapter import Adapter, Factors, Product
from traces.arrays import Float32Array, FloatArray


def num_numbers(rank: int, *, inputs: int, outputs: int) -> int:
    """Return how many numbers a sum of ``rank`` terms is kept and sent as."""
    return min(rank * (inputs + outputs), inputs * outputs)


def is_dense(rank: int, *, inputs: int, outputs: int) -> bool:
    """Return whether a sum of ``rank`` terms is kept as the matrix, which is then no larger."""
    return rank * (inputs + outputs) >= inputs * outputs


def multiplied_out(product: Product) -> FloatArray:
    """Return a product as a matrix (out, in) in float64."""
    if not isinstance(product, Factors):
        return product.astype(np.float64)
    dense: FloatArray = product.b.astype(np.float64) @ product.a.astype(np.float64)
    return dense


def side_by_side(parts: Sequence[Factors]) -> Factors:
    """Return the factors [A_1; A_2; ...] and [B_1, B_2, ...].

    Their product is exactly the sum of the products of the parts.
    """
    return Factors(
        np.concatenate([part.a for part in parts]),
        np.concatenate([part.b for part in parts], axis=1),
    )


def summed(parts: Sequence[Product]) -> Product:
    """Return the sum of products, as factors or as the matrix, whichever holds fewer numbers."""
    factors = [part for part in parts if isinstance(part, Factors)]
    if len(factors) == len(parts):
        stack = side_by_side(factors)
        rank, inputs = stack.a.shape
        if not is_dense(rank, inputs=inputs, outputs=len(stack.b)):
            return stack
    total: Float32Array = np.sum(list(map(multiplied_out, parts)), axis=0).astype(np.float32)
    return total


def as_factors(product: Product) -> Factors:
    """Return a product as factors, exactly; for a matrix one of them is the identity."""
    if isinstance(product, Factors):
        return product
    outputs, inputs = product.shape
    if inputs <= outputs:
        return Factors(np.eye(inputs, dtype=np.float32), product)
    return Factors(product, np.eye(outputs, dtype=np.float32))


def unmerged(adapter: Adapter) -> Adapter:
    """Return an adapter of the pretrained weights that gives the same model, with nothing merged.

    Its rank is the highest that a layer needs; other layers are padded with zeros. Terms whose B is
    zero are left out.
    """
    if not adapter.merged.products:
        return adapter
    factors = {}
    for key, (a, b) in adapter.factors.items():
        used = b.any(axis=0)
        parts: list[Product] = [Factors(a[used], b[:, used])]
        if key in adapter.merged.products:
            parts.append(adapter.merged.products[key])
        factors[key] = as_factors(summed(parts))
    rank = max(1, max(len(a) for a, _ in factors.values()))
    padded = {
        key: Factors(_padded(a, rank, axis=0), _padded(b, rank, axis=1))
        for key, (a, b) in factors.items()
    }
    return Adapter(padded, adapter.head, adapter.scale)


def _padded(factor: Float32Array, rank: int, *, axis: int) -> Float32Array:
    missing = [(0, 0), (0, 0)]
    missing[axis] = (0, rank - factor.shape[axis])
    return np.pad(factor, missing)
