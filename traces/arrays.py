"""Types of NumPy arrays that all packages share; shapes are said where an array is used."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
BitsArray = npt.NDArray[np.uint8]
"""Widths of numbers in bits."""
