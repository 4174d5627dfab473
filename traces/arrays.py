"""Names the types of NumPy arrays that all packages share; shapes stand where they are used."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
BitsArray = npt.NDArray[np.uint8]
"""Widths of numbers in bits."""


def groups_of(index: IntArray) -> list[tuple[IntArray, int]]:
    """Return for each number in ``index`` (n,) the rising rows that hold it, and the number."""
    if not len(index):
        return []
    order = np.argsort(index, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(index[order])) + 1)
    return [(rows, int(index[rows[0]])) for rows in groups]
