"""Parquet files are read like the other formats, and refused in words where they are damaged."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from devices.datasets import records
from devices.datasets.dataset import load_dataset
from devices.tasks.classification import Classification
from devices.tasks.registry import load_task

TRAIN = {"text": ["good", " bad ", "söß"], "label": [1, 0, 1]}


def packed(columns: dict[str, Any], **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


def folder_of(folder: Path, train: bytes, test: dict[str, Any] | None = None) -> str:
    (folder / "train.parquet").write_bytes(train)
    (folder / "test.parquet").write_bytes(packed(test or TRAIN))
    return str(folder)


def refusal(directory: str) -> str | None:
    """Return what loading says where it refuses the data; it may raise nothing else."""
    try:
        load_dataset(directory, Classification.columns)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
@pytest.mark.parametrize("is_dictionary", [True, False])
def test_texts_and_whole_numbers_are_read(
    tmp_path: Path, compression: str, is_dictionary: bool
) -> None:
    train = packed(TRAIN, compression=compression, use_dictionary=is_dictionary, row_group_size=2)
    data = load_dataset(folder_of(tmp_path, train), Classification.columns)
    assert data.train["text"] == ("good", "bad", "söß")
    assert data.train["label"] == ("1", "0", "1")


def test_rows_are_those_of_the_same_table_as_json(tmp_path: Path) -> None:
    import json

    rng = np.random.default_rng(0)
    texts = [f"text {k} of {rng.integers(9)}" for k in range(3000)]
    labels = [f"class {k}" for k in rng.integers(5, size=3000)]
    table = {"text": texts, "label": pa.array(labels).dictionary_encode(), "id": range(3000)}
    lines = (json.dumps({"text": t, "label": c}) for t, c in zip(texts, labels, strict=True))
    folder_of(tmp_path, packed(table, row_group_size=1000), {"text": ["a"], "label": ["class 1"]})
    (tmp_path / "as_json").mkdir()
    for split in ("train", "test"):
        (tmp_path / "as_json" / f"{split}.jsonl").write_text("\n".join(lines) or '{"text": "a"}')
        break
    (tmp_path / "as_json" / "test.jsonl").write_text('{"text": "a", "label": "class 1"}')
    found = load_dataset(str(tmp_path), Classification.columns, named={"text": "text"})
    assert (
        found.train.columns
        == load_dataset(str(tmp_path / "as_json"), Classification.columns).train.columns
    )
    assert found.unused == ("id",)
    assert found.train.lines[-1] == 3000


def test_lists_and_scores_have_types_of_their_own(tmp_path: Path) -> None:
    table = {"prompt": ["q"], "choices": [["a", "b"]], "answer": ["b"]}
    task = load_task("choice", folder_of(tmp_path, packed(table), table))
    assert task.data.train["choices"] == ('["a", "b"]',)
    scores = {"text": ["a", "b"], "score": [0.5, 2.0]}
    task = load_task("regression", folder_of(tmp_path, packed(scores), scores))
    assert task.data.test["score"] == ("0.5", "2.0")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"text": ["a", None], "label": ["x", "y"]}, r"text must be a string, got nothing .*row 2"),
        (
            {"text": pa.nulls(2), "label": ["x", "y"]},
            r"text must be a string, got nothing .*train.parquet, row 1",
        ),
        ({"text": [1, 2], "label": ["x", "y"]}, r"text must be a string, got 1 "),
        ({"text": ["a", " "], "label": ["x", "y"]}, r"text must not be empty, .*, row 2\)"),
        ({"text": ["a", "b"], "label": [True, False]}, "label must be a string or a whole number"),
        ({"text": [["a"], ["b"]], "label": ["x", "y"]}, r"text must be a string, got \['a'\]"),
        ({"text": ["a", "b"]}, r"must name text and label once each, got text \("),
        ({"text": ["a"], "label": ["x"], "id": [1]}, r"alone, .*, got also 'id'; remove"),
        ({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}, "got none"),
        (
            {
                "text": pa.array([b"\xff", b"a"]).cast(pa.binary()).view(pa.string()),
                "label": ["x"] * 2,
            },
            r"must be one that can be read, got: .*[Uu][Tt][Ff]",
        ),
    ],
)
def test_a_value_that_breaks_a_rule_is_refused_with_its_row(
    tmp_path: Path, table: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load_dataset(folder_of(tmp_path, packed(table)), Classification.columns)
    assert "train.parquet" in str(error.value)


def test_any_damage_is_words_or_changes_values_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    whole = packed({"text": [f"a{k}" for k in range(50)], "label": [k % 3 for k in range(50)]})
    damaged = [b"", b"PAR1", whole[:-1], whole[4:], b"text,label\na,x\n", b"PAR1" * 9]
    for _ in range(400):
        one = bytearray(whole)
        for place in rng.integers(len(one), size=rng.integers(1, 4)):
            one[place] = rng.integers(256)
        damaged.append(bytes(one))
    for content in damaged:
        said = refusal(folder_of(tmp_path, content))
        assert said is None or ("train.parquet" in said and "\n" not in said)


def test_what_unpacks_to_more_than_memory_would_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MAX_BYTES", 1_000_000)
    alike = packed({"text": ["a" * 10_000] * 1000, "label": ["x"] * 1000}, compression="zstd")
    assert len(alike) < 20_000
    with pytest.raises(ValueError, match=r"at most 1,000,000 bytes, got 1,000,\d+ or more"):
        load_dataset(folder_of(tmp_path, alike), Classification.columns)
    wide = packed({"text": ["a" * 2_000_000], "label": ["x"]}, compression="zstd")
    with pytest.raises(ValueError, match=r"at most 1,000,000 bytes, got 2,000,"):
        load_dataset(folder_of(tmp_path, wide), Classification.columns)
    monkeypatch.setattr(records, "MAX_ROWS", 99)
    with pytest.raises(ValueError, match=r"at most 99 rows, got 1,000"):
        load_dataset(folder_of(tmp_path, alike), Classification.columns)
