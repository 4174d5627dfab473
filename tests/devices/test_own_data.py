"""A user's own data is read, or refused with its place."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.datasets import records
from devices.datasets.dataset import SPLITS, Edition, load_dataset
from devices.tasks.classification import Classification
from devices.tasks.registry import load_task
from devices.tasks.regression import Regression

TRAIN = "text,label\ngood film,pos\nbad film,neg\n"
TEST = "text,label\nfine,pos\n"


def write(directory: Path, **contents: str | bytes) -> str:
    """Write files named like train_csv, and return the directory's path."""
    for name, content in contents.items():
        raw = content.encode() if isinstance(content, str) else content
        (directory / name.replace("_", ".")).write_bytes(raw)
    return str(directory)


def refusal(directory: str) -> Exception | None:
    """Return the error that loading raises, or None."""
    try:
        Classification.of(load_dataset(directory, Classification.columns))
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        ("csv", '\ufefflabel,text\r\nx,"a ""b"",\nc"\r\n\r\n y , d \r\n'),
        ("tsv", 'text\tlabel\na "b",\tx\nd\ty\n'),
        ("jsonl", '{"text": "a", "label": "x"}\n\n{"label": "y", "text": "d"}'),
    ],
)
def test_each_format_is_read(tmp_path: Path, ending: str, content: str) -> None:
    directory = write(tmp_path, **{f"train_{ending}": content, f"test_{ending}": content})
    data = load_dataset(directory, Classification.columns)
    first = {"csv": 'a "b",\nc', "tsv": 'a "b",', "jsonl": "a"}[ending]
    assert data.train["text"] == data.test["text"] == (first, "d")
    task = Classification.of(data)
    assert task.labels["train"].tolist() == [0, 1]
    assert task.labels["train"].dtype == np.int64
    assert task.class_names == ("x", "y")


def test_splits_may_differ_in_format_and_json_labels_may_be_numbers(tmp_path: Path) -> None:
    jsonl = '{"text": "e", "label": 1}\n'
    data = load_dataset(
        write(tmp_path, train_csv="text,label\nc,1\nd,0\n", test_jsonl=jsonl),
        Classification.columns,
    )
    assert (data.name, data.source) == (tmp_path.name, tmp_path.name)
    assert Classification.of(data).labels["test"].tolist() == [1]
    assert Classification.of(data).majority_share == 1.0


@pytest.mark.parametrize(
    ("ending", "content", "named"),
    [
        ("csv", "text,label,client\na,x,7\n", "'client'"),
        ("csv", ",text,label\n0,a,x\n", "''"),
        ("tsv", "text2\ttext\tlabel\nb\ta\tx\n", "'text2'"),
        ("jsonl", '{"text": "a", "label": "x", "pair": "b"}', "'pair'"),
    ],
)
def test_a_column_that_nothing_would_read_is_refused_by_its_name(
    tmp_path: Path, ending: str, content: str, named: str
) -> None:
    directory = write(tmp_path, **{f"train_{ending}": content}, test_csv=TEST)
    with pytest.raises(ValueError, match=rf"alone.*got also {named}; .*train.{ending}, line 1\)"):
        load_dataset(directory, Classification.columns)


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_text_longer_than_pythons_limit_is_read(tmp_path: Path, ending: str) -> None:
    long = "a" * 131_073
    limit = csv.field_size_limit()
    tab = "," if ending == "csv" else "\t"
    content = f"text{tab}label\n{long}{tab}pos\nb{tab}neg\n"
    data = load_dataset(
        write(tmp_path, **{f"train_{ending}": content}, test_csv=TEST), Classification.columns
    )
    assert data.train["text"] == (long, "b")
    assert csv.field_size_limit() == limit


def test_data_that_memory_would_not_hold_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("text,label\na,x\nb,y\n", "utf-8")
    monkeypatch.setattr(records, "MAX_ROWS", 2)
    with pytest.raises(ValueError, match=r"at most 2 lines, got 3 .*train\.csv"):
        load_dataset(str(tmp_path), Classification.columns)
    os.truncate(tmp_path / "train.csv", records.MAX_BYTES + 1)  # a sparse file takes no room
    with pytest.raises(ValueError, match=r"at most 1,000,000,000 bytes, got 1,000,000,001"):
        load_dataset(str(tmp_path), Classification.columns)


def test_the_hash_follows_the_content(tmp_path: Path) -> None:
    first = load_dataset(
        write(tmp_path, train_csv=TRAIN, test_csv=TEST), Classification.columns
    ).sha256
    digests = [hashlib.sha256(content.encode()).digest() for content in (TRAIN, TEST)]
    assert first == hashlib.sha256(b"".join(digests)).hexdigest()
    assert (
        load_dataset(write(tmp_path, test_csv=TEST + "x,neg\n"), Classification.columns).sha256
        != first
    )


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (
            {"train_csv": TRAIN},
            "exactly one of test.csv, test.tsv, .*test.parquet must be there, got none",
        ),
        (
            {"train_csv": TRAIN, "train_tsv": TRAIN, "test_csv": TEST},
            "exactly one of train.csv, .* got train.csv, train.tsv",
        ),
        ({"train_csv": b"", "test_csv": TEST}, "header must name text and label .* nothing"),
        (
            {"train_csv": "text,class\na,b\n", "test_csv": TEST},
            r"header must name text and label once each, got text, class \(.*csv, line 1\)",
        ),
        (
            {"train_csv": "text,label\n", "test_csv": TEST},
            r"at least one example, got none \(.*train.csv\)",
        ),
        (
            {"train_csv": TRAIN + " ,pos\n", "test_csv": TEST},
            r"text must not be empty, got ' ' \(.*train.csv, line 4\)",
        ),
        (
            {"train_csv": TRAIN, "test_csv": "text,label\nfine,\n"},
            r"label must not be empty, got '' \(.*test.csv, line 2\)",
        ),
        (
            {"train_csv": TRAIN + "a,b,c\n", "test_csv": TEST},
            r"a row must have 2 fields as the header, got 3 \(.*line 4\)",
        ),
        (
            {"train_csv": TRAIN + 'a"b,"c', "test_csv": TEST},
            r"every row must be well-formed, got: unexpected end of data \(.*line 4\)",
        ),
        (
            {"train_csv": TRAIN.encode() + b"caf\xe9,pos\n", "test_csv": TEST},
            r"the file must be UTF-8, got byte 0xe9 \(.*train.csv, line 4\)",
        ),
        (
            {"train_csv": TRAIN, "test_csv": "text,label\nfine,pos\nso so,mixed\n"},
            r"label must be one of the training labels neg, pos, got 'mixed' \(.*, line 3\)",
        ),
        (
            {
                "train_csv": "text,label\n" + "".join(f"a,{i}\n" for i in range(10, 40)),
                "test_csv": "text,label\na,5\n",
            },
            r"training labels 10, .*, 29, \.\.\., got '5'",
        ),
        (
            {"train_csv": "text,label\na,pos\nb,pos\n", "test_csv": TEST},
            "at least 2 labels, got only pos",
        ),
        (
            {"train_csv": TRAIN, "test_jsonl": '{"text": "a", "label": "pos"}\n{"text": '},
            r"every line must be JSON, got: .* \(.*test.jsonl, line 2\)",
        ),
        (
            {"train_csv": TRAIN, "test_jsonl": "[" * 100_000},
            r"every line must be JSON, got: values must be nested less deeply \(.*jsonl, line 1\)",
        ),
        ({"train_csv": TRAIN, "test_jsonl": "3"}, "every line must be an object, got int"),
        (
            {"train_csv": TRAIN, "test_jsonl": '{"label": "pos"}'},
            "text must be a string, got nothing",
        ),
        (
            {"train_csv": TRAIN, "test_jsonl": '{"text": "a", "label": true}'},
            "label must be a string or a whole number, got True",
        ),
        (
            {"train_csv": TRAIN, "test_jsonl": '{"text": "a\\ud800", "label": "pos"}'},
            "text must be valid Unicode, got half of a character",
        ),
    ],
)
def test_broken_data_is_refused_with_its_place(
    tmp_path: Path, contents: dict[str, str | bytes], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Classification.of(load_dataset(write(tmp_path, **contents), Classification.columns))
    assert str(tmp_path) in str(error.value)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    directory = write(tmp_path, train_csv=TRAIN, test_csv=TEST)
    (tmp_path / "test.csv").chmod(0)
    if os.access(tmp_path / "test.csv", os.R_OK):
        pytest.skip("this user may read every file")
    with pytest.raises(ValueError, match=r"the file must be readable, got: .*test.csv"):
        load_dataset(directory, Classification.columns)


@settings(max_examples=300, deadline=None)
@given(
    ending=st.sampled_from(["csv", "tsv", "jsonl"]),
    start=st.sampled_from([b"", b"text,label\n", b"text\tlabel\n", b'{"text": ']),
    rest=st.one_of(
        st.binary(max_size=80),
        st.text(max_size=80).map(lambda text: text.encode(errors="surrogatepass")),
        st.text(alphabet='a,\t\n\r"{}[]:\0\\1', max_size=80).map(str.encode),
    ),
)
def test_any_bytes_are_read_or_refused_with_a_place(ending: str, start: bytes, rest: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        directory = write(Path(folder), **{f"train_{ending}": start + rest}, test_csv=TEST)
        error = refusal(directory)
    if error is not None:
        assert type(error) is ValueError
        assert re.search(r"must .*, got.* \(.*(train|test)\..*\)$", str(error), re.DOTALL)


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(st.text(min_size=1), st.sampled_from(["a", "b", "c"])), min_size=1),
    damage=st.sampled_from(["no text", "empty label", "not an object", "no JSON", "a number"]),
    data=st.data(),
)
def test_one_damaged_line_is_the_one_that_is_named(
    rows: list[tuple[str, str]], damage: str, data: st.DataObject
) -> None:
    lines = [json.dumps({"text": f"x{text}", "label": label}) for text, label in rows]
    at = data.draw(st.integers(0, len(lines)))
    lines.insert(
        at,
        {
            "no text": '{"label": "a"}',
            "empty label": '{"text": "x", "label": ""}',
            "not an object": '["x", "a"]',
            "no JSON": "{",
            "a number": '{"text": 1.5, "label": "a"}',
        }[damage],
    )
    with tempfile.TemporaryDirectory() as folder:
        directory = write(Path(folder), train_jsonl="\n".join(lines), test_csv=TEST)
        with pytest.raises(ValueError, match=rf"train.jsonl, line {at + 1}\)$"):
            load_dataset(directory, Classification.columns)


def test_a_pair_is_read_where_the_columns_name_it_and_scores_may_be_numbers(tmp_path: Path) -> None:
    jsonl = '{"s1": "a", "s2": "b", "mark": 2.5, "id": 1}\n{"s1": "c", "s2": "d", "mark": "3"}\n'
    folder = write(tmp_path, train_jsonl=jsonl, test_jsonl=jsonl)
    named = {"text": "s1", "pair": "s2", "score": "mark"}
    task = load_task("regression", folder, named=named)
    assert task.data.train["pair"] == ("b", "d")
    assert isinstance(task, Regression)
    assert task.scores["test"].tolist() == [2.5, 3.0]
    alone = load_task("regression", folder, named={"text": "s1", "score": "mark"})
    assert "pair" not in alone.data.train.columns
    with pytest.raises(ValueError, match=r"columns may name text, label, pair, .*got 'paar'"):
        load_task("classification", folder, named={"paar": "s2"})
    wrong = jsonl.replace('"b"', "7")
    folder = write(tmp_path, train_jsonl=wrong, test_jsonl=jsonl)
    with pytest.raises(ValueError, match=r"s2 must be a string, got 7 .*train\.jsonl, line 1"):
        load_task("regression", folder, named=named)
    with pytest.raises(ValueError, match=r"mark must be a string or a whole number, got 2\.5"):
        load_task("classification", folder, named={"text": "s1", "label": "mark"})


def test_columns_that_nothing_reads_are_named_in_their_order(tmp_path: Path) -> None:
    jsonl = '{"id": 1, "s": "a", "kind": "x"}\n{"id": 2, "s": "b", "kind": "y", "source": "z"}\n'
    folder = write(tmp_path, train_jsonl=jsonl, test_csv="s,kind,when,id\na,x,1,2\n")
    data = load_dataset(folder, Classification.columns, named={"text": "s", "label": "kind"})
    assert data.unused == ("id", "source", "when")
    assert (
        load_dataset(folder, ("text",), {"text": "s", "label": "kind"}, nameable=("label",)).unused[
            1
        ]
        == "kind"
    )
    assert load_dataset("wordnet-16", ("text",)).unused == ("label",)
    assert load_dataset("wordnet-16", Classification.columns).unused == ()


def test_bundled_data_is_read_under_other_names_too() -> None:
    """The topic of a definition is an answer to a prompt, where the config says so."""
    plain = load_dataset("wordnet-16", Classification.columns)
    named = {"prompt": "text", "answer": "label"}
    data = load_dataset("wordnet-16", ("prompt", "answer"), named)
    assert (data.unused, data.sha256) == ((), plain.sha256)
    for split in SPLITS:
        assert data[split]["prompt"] == plain[split]["text"]
        assert data[split]["answer"] == plain[split]["label"]
    assert load_dataset("wordnet-16", ("text",), {"text": "label"}).unused == ("text",)
    with pytest.raises(ValueError, match=r"lacks topic, it has text, label; .* task\.columns"):
        load_dataset("wordnet-16", ("prompt", "answer"), {"prompt": "text", "answer": "topic"})


def test_splits_of_other_names_are_read_and_never_one_as_both(tmp_path: Path) -> None:
    folder = write(tmp_path, train_csv=TRAIN, test_csv=TEST, validation_csv=TEST * 1 + "so,neg\n")
    assert (
        len(load_dataset(folder, Classification.columns, edition=Edition(test="validation")).test)
        == 2
    )
    with pytest.raises(ValueError, match="must be two splits, got test"):
        load_dataset(folder, Classification.columns, edition=Edition(train="test"))
    with pytest.raises(ValueError, match="test_split must be left out for wordnet-16"):
        load_dataset("wordnet-16", Classification.columns, edition=Edition(test="validation"))
    with pytest.raises(ValueError, match="data_config must be left out, except for data on the"):
        load_dataset(folder, Classification.columns, edition=Edition(config="sst2"))
