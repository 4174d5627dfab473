"""Adds to a device table the compute speed of each device as a multiple of the table's median."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from traces.arrays import FloatArray
from traces.importers.result import DeviceTable
from traces.text import plain_number

SPEED_OF: dict[str, Callable[[FloatArray], FloatArray]] = {
    "inference_s_per_sample": lambda seconds: np.median(seconds) / seconds,
    "cpu_float_score": lambda points: points / np.median(points),
    "nn_fp32_score": lambda points: points / np.median(points),
    "ai_score": lambda points: points / np.median(points),
}
"""Functions from a column to the speeds that follow from it, the best column first.

Of a phone's scores, that of its processor's floating point is nearest to training there; the scores
of accelerators for inference are further from it.
"""
MAX_RATIO = 1e6
"""Largest ratio of a speed to the median, above which the column is no measurement."""


def with_speed(table: DeviceTable) -> DeviceTable:
    """Return the table with a column ``speed``, from the first column that every device has.

    Without such a column the table is returned as it is.
    """
    for column, speed_of in SPEED_OF.items():
        if column not in table.columns:
            continue
        at = table.columns.index(column)
        values = np.array([plain_number(row[at]) for row in table.rows])
        if not (values > 0).all():
            continue
        speeds = speed_of(values)
        if not ((speeds >= 1 / MAX_RATIO) & (speeds <= MAX_RATIO)).all():
            continue
        rows = tuple((*row, f"{speed:.6g}") for row, speed in zip(table.rows, speeds, strict=True))
        note = f"speed: {column} against the median of the table"
        return replace(
            table, columns=(*table.columns, "speed"), rows=rows, notes=(*table.notes, note)
        )
    return table
