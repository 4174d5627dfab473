"""Holds control variates: estimates of gradients, by which devices correct their steps.

Karimireddy et al.: "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020,
arXiv 1910.06378, Algorithm 1 with option II. A control variate has the form of an adapter, in which
each number is the estimated gradient of the number in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from devices.vocabulary.adapter import Adapter, Factors
from traces.arrays import FloatArray


@dataclass(frozen=True, eq=False)
class Controls:
    """Controls are the two variates that one device trains with: the server's c and its own c_k."""

    everybody: Adapter
    own: Adapter

    @cached_property
    def correction(self) -> Adapter:
        """Return the term that is added to the gradient of every step: c - c_k."""
        return elementwise(lambda c, own: c - own, self.everybody, self.own)

    def change(self, start: Adapter, end: Adapter, moved: float) -> Adapter:
        """Return by how much a device's own variate changes: (x - y_k) / (K eta) - c.

        The device trained from ``start``, x, to ``end``, y_k. ``moved`` is K eta, the sum of the
        rates of its steps; where it is zero nothing is known of the gradient, and nothing changes.
        """
        if moved == 0.0:
            return zeros_like(start)
        return elementwise(lambda x, y, c: (x - y) / moved - c, start, end, self.everybody)


def elementwise(operation: Callable[..., FloatArray], *adapters: Adapter) -> Adapter:
    """Return the adapter whose arrays are ``operation`` of those in their places, in doubles."""

    def worked_out(*arrays: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return operation(*(array.astype(np.float64) for array in arrays)).astype(np.float32)

    first = adapters[0]
    factors = {
        key: Factors(
            *(
                worked_out(*same)
                for same in zip(*(one.factors[key] for one in adapters), strict=True)
            )
        )
        for key in first.factors
    }
    head = {name: worked_out(*(one.head[name] for one in adapters)) for name in first.head}
    return replace(first, factors=factors, head=head)


def zeros_like(adapter: Adapter) -> Adapter:
    """Return an adapter of the same form whose numbers are all zero."""
    return elementwise(np.zeros_like, adapter)
