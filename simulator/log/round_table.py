"""Makes the records of rounds from the plans that ended in each, column by column."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from devices.tasks.task import Metric
from simulator.log.records import (
    NUM_UNMERGED,
    ClientTable,
    Columns,
    RoundProgress,
    RoundRecord,
    item,
)
from traces.arrays import BoolArray, FloatArray, IntArray

SUMS = ("download_bytes", "upload_bytes")


@dataclass(frozen=True, eq=False)
class RoundTable:
    """A round table holds m round records in columns of length m, each metric in one of its own."""

    columns: Columns
    metrics: Mapping[Metric, FloatArray]

    @classmethod
    def of(
        cls,
        progress: Sequence[RoundProgress],
        ended: ClientTable,
        ends: IntArray,
        metrics: Mapping[Metric, FloatArray],
    ) -> RoundTable:
        """Return the sums and means over the plans that ended in each round.

        ``ended`` (n,) are the plans of all rounds, one round after the other, and ``ends`` (m,) is
        how many of them there are up to the end of each round.
        """
        known = _by_name(progress)
        of_round = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
        outcomes = ended.columns["outcome"]
        is_merged: BoolArray = outcomes == "aggregated"

        def count(chosen: BoolArray) -> IntArray:
            return np.bincount(of_round[chosen], minlength=len(ends))

        def total(values: FloatArray) -> FloatArray:
            # bincount adds in the order of the records, which numpy's sum does not keep.
            found: FloatArray = np.bincount(of_round, values, len(ends)).astype(np.float64)
            return found

        energies = [ended.columns[f"energy_{name}_j"] for name in ("compute", "radio", "idle")]
        num_merged = count(is_merged)
        train_loss, waiting_s = _means(ended.columns, is_merged, num_merged)
        columns: dict[str, npt.NDArray[Any]] = {
            **known,
            "duration_s": known["closed_s"] - known["opened_s"],
            "train_loss": train_loss,
            "num_sat_out": known["num_cohort"] - known["num_planned"],
            "num_aggregated": num_merged,
            **{name: count(outcomes == outcome) for name, outcome in NUM_UNMERGED.items()},
            "num_shrunk": count(ended.columns["num_shrinks"] > 0),
            "waiting_s": waiting_s,
            **{name: _whole_sums(ended.columns[name], ends) for name in SUMS},
            "flops": total(ended.columns["flops"]),
            "energy_j": total((energies[0] + energies[1]) + energies[2]),
        }
        return cls(columns, metrics)

    @classmethod
    def joined(cls, tables: Sequence[RoundTable]) -> RoundTable:
        """Return the records of several tables, one table after the other."""
        if not tables:
            return cls.of([], ClientTable.of([]), np.zeros(0, dtype=np.int64), {})
        first = next((one for one in tables if one.metrics), tables[0])
        return cls(
            {name: np.concatenate([t.columns[name] for t in tables]) for name in first.columns},
            {m: np.concatenate([t.metrics[m] for t in tables if len(t)]) for m in first.metrics},
        )

    def __len__(self) -> int:
        return len(self.columns["round"])

    def record(self, row: int) -> RoundRecord:
        """Return one of the records."""
        metrics = {metric: item(values, row) for metric, values in self.metrics.items()}
        given = {name: item(values, row) for name, values in self.columns.items()}
        return RoundRecord(**given, metrics=metrics)


def _by_name(progress: Sequence[RoundProgress]) -> dict[str, npt.NDArray[Any]]:
    values = zip(*progress, strict=True) if progress else [()] * len(RoundProgress._fields)
    return {
        name: np.array(column, np.float64 if name.endswith("_s") else np.int64)
        for name, column in zip(RoundProgress._fields, values, strict=True)
    }


def _means(ended: Columns, is_merged: BoolArray, counts: IntArray) -> tuple[FloatArray, FloatArray]:
    """Return (m,) each: the mean loss by examples and the mean wait of what each round merged."""
    losses, waits_s = ended["train_loss"][is_merged], ended["waiting_s"][is_merged]
    examples = ended["num_examples"][is_merged].astype(np.float64)
    ends = np.cumsum(counts)
    train_loss, waiting_s = np.full(len(counts), math.nan), np.zeros(len(counts))
    one = counts == 1  # most rounds of an asynchronous run merge one update
    rows = ends[one] - 1
    train_loss[one] = losses[rows] * examples[rows] / examples[rows]
    waiting_s[one] = waits_s[rows]
    for k in np.flatnonzero(counts > 1).tolist():
        rows = slice(ends[k] - counts[k], ends[k])
        train_loss[k] = losses[rows] @ examples[rows] / examples[rows].sum()
        waiting_s[k] = waits_s[rows].sum() / counts[k]
    return train_loss, waiting_s


def _whole_sums(values: IntArray, ends: IntArray) -> IntArray:
    """Return (m,): the sums of whole numbers up to each end from the end before."""
    sums = np.concatenate([[0], np.cumsum(values)])[ends]
    found: IntArray = np.diff(sums, prepend=0)
    return found
