"""Columns as they are written."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.log.tables import column

VALUES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float64(): st.floats(width=64, allow_nan=False),
    pa.string(): st.text(st.characters(exclude_categories=["Cs"])),
}


@given(st.sampled_from(list(VALUES)).flatmap(lambda k: st.tuples(st.just(k), st.lists(VALUES[k]))))
def test_a_column_is_what_pyarrow_makes_of_the_values(case: tuple[pa.DataType, list[Any]]) -> None:
    kind, values = case
    found = column(values, kind)
    found.validate(full=True)
    assert found.equals(pa.array(values, kind))
    assert found.null_count == 0


def test_a_missing_number_stays_not_a_number() -> None:
    found = column(np.array([np.nan, 1.0]), pa.float64())
    assert found.null_count == 0
    np.testing.assert_array_equal(found.to_numpy(), [np.nan, 1.0])


def test_whole_numbers_may_be_written_as_fractions_but_not_the_other_way_round() -> None:
    assert column([1, 2], pa.float64()).to_pylist() == [1.0, 2.0]
    with pytest.raises(TypeError, match="int64"):
        column([1.5], pa.int64())


def test_writing_does_not_import_pandas() -> None:
    code = """
import sys, tempfile, pathlib
from devices.tasks.classification import Classification
from simulator.log.records import RoundRecord
from simulator.log.tables import write_columns
from dataclasses import fields
columns = {f.name: ["a"] if str(f.type) == "str" else [1] for f in fields(RoundRecord)}
columns |= {metric.name: [0.5] for metric in Classification.metrics}
with tempfile.TemporaryDirectory() as folder:
    write_columns(pathlib.Path(folder) / "rounds.parquet", RoundRecord, columns,
                  Classification.metrics)
print("pandas" in sys.modules)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"
