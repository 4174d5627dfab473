"""The hub's real client loads its data sets over loopback, then without it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from devices.tasks.classification import Classification
from tests.devices.loopback_hub import NAME, Hub, printed_by, serving
from tests.devices.test_parquet import packed

needs_library = pytest.mark.skipif(
    find_spec("datasets") is None, reason="the library datasets is not installed (extra [hub])"
)
OFFLINE = {"HF_HUB_OFFLINE": "1"}
UNREACHABLE = {"HF_ENDPOINT": "http://127.0.0.1:9"}
README = """---
configs:
- config_name: first
  data_files:
  - {split: train, path: first/train-*}
  - {split: test, path: first/test.parquet}
- config_name: pairs
  data_files:
  - {split: train, path: pairs/train.csv}
  - {split: validation_matched, path: pairs/validation.csv}
---
# Small
"""


def files_of(word: str = "a") -> dict[str, bytes]:
    """Return the files of a data set with two configurations, and code that must not be fetched."""
    parts = [{"text": [f"{word}{k}", f"b{k}"], "label": [k, 1 - k]} for k in range(2)]
    return {
        "README.md": README.encode(),
        "first/train-00000-of-00002.parquet": packed(parts[0]),
        "first/train-00001-of-00002.parquet": packed(parts[1]),
        "first/test.parquet": packed(parts[0]),
        "pairs/train.csv": b"s1,s2,label,idx\nx,y,yes,0\nz,w,no,1\n",
        "pairs/validation.csv": b"s1,s2,label,idx\nx,w,no,0\n",
        "small.py": b"raise SystemExit",
    }


def found(
    home: Path, environment: Mapping[str, str], *editions: Mapping[str, str], **given: Any
) -> list[dict[str, Any]]:
    """Return what a process of its own reads of each edition, or the error."""
    code = (
        "import json, sys; from devices.datasets.dataset import Edition, load_dataset\n"
        f"given = {{'name': {NAME!r}, 'columns': {Classification.columns!r}, **{given!r}}}\n"
        f"for edition in {editions or ({},)!r}:\n"
        " try:\n"
        "  data = load_dataset(**given, edition=Edition(**edition))\n"
        "  said = dict(train=dict(data.train.columns), test=dict(data.test.columns),\n"
        "   source=data.source, sha256=data.sha256, unused=data.unused)\n"
        " except ValueError as error: said = dict(error=str(error))\n"
        " print(json.dumps(said))"
    )
    return [json.loads(line) for line in printed_by(code, home, environment).splitlines()]


def online(hub: Hub, home: Path, *editions: Mapping[str, str], **given: Any) -> Any:
    with serving(hub) as address:
        return found(home, {"HF_ENDPOINT": address}, *editions, **given)


def sha256(files: Mapping[str, bytes], start: str) -> str:
    whole = b"".join(files[name] for name in sorted(files) if name.startswith(start))
    return hashlib.sha256(whole).hexdigest()


@needs_library
def test_a_data_set_fetched_once_needs_no_network_again(tmp_path: Path) -> None:
    hub, files, home = Hub(), files_of(), tmp_path / "home"
    commit = hub.commit(files, "main")
    edition = {"config": "first"}
    (read,) = online(hub, home, edition)
    assert read == {
        "train": {"text": ["a0", "b0", "a1", "b1"], "label": ["0", "1", "1", "0"]},
        "test": {"text": ["a0", "b0"], "label": ["0", "1"]},
        "source": f"{NAME}@{commit}, first: train and test",
        "sha256": sha256(files, "first/"),
        "unused": [],
    }
    assert not list(home.rglob("*.py")), "code is never fetched"
    assert not list(home.rglob("*.csv")), "another configuration is not fetched"
    assert found(home, UNREACHABLE, edition) == [read]
    pinned = {**edition, "revision": commit}
    *again, lacking = found(home, OFFLINE, edition, pinned, {"config": "pairs"})
    assert again == [read, read]
    assert "the hub said: " in lacking["error"]


@needs_library
def test_columns_and_splits_have_names_of_their_own(tmp_path: Path) -> None:
    hub = Hub()
    hub.commit(files_of(), "main")
    edition = {"config": "pairs", "test": "validation_matched"}
    given: dict[str, Any] = {"named": {"text": "s1", "pair": "s2"}, "optional": ("pair",)}
    wrong = ({**edition, "test": "validation"}, {**edition, "config": "third"}, {"train": "x"})
    read, *refused = online(hub, tmp_path, edition, *wrong, **given)
    assert read["train"] == {"text": ["x", "z"], "label": ["yes", "no"], "pair": ["y", "w"]}
    assert read["test"] == {"text": ["x"], "label": ["no"], "pair": ["w"]}
    assert read["unused"] == ["idx"]
    for one, says in zip(
        refused,
        (
            "test_split must be one of train, validation_matched, the splits of pairs, not valida",
            "data_config must be one of first, pairs, got third",
            "data_config must be one of first, pairs, got none",
        ),
        strict=True,
    ):
        assert says in one["error"]
    (said,) = found(tmp_path, OFFLINE, edition, named={"text": "sentence"})
    assert "must name sentence and label once each, got s1, s2, label, idx" in said["error"]
    assert said["error"].endswith("/pairs/train, row 1)")


@needs_library
def test_a_pinned_revision_is_the_one_that_is_read(tmp_path: Path) -> None:
    hub = Hub()
    first = hub.commit(files_of("old"), "main", "v1")
    hub.commit(files_of("new"), "main")
    names = (first, "v1", first, "v9")
    editions = [{"config": "first", "revision": name} for name in names]
    *old, wrong, new = online(hub, tmp_path, *editions, {"config": "first"})
    assert [one["train"]["text"][0] for one in (*old, new)] == ["old0"] * 3 + ["new0"]
    assert "the hub said: " in wrong["error"]
    again = found(tmp_path, OFFLINE, *editions[:2], {"config": "first"})
    assert again == [*old[:2], new]


@needs_library
def test_a_download_that_broke_off_is_completed_and_never_read_as_the_whole(tmp_path: Path) -> None:
    hub = Hub()
    hub.commit(files_of(), "main")
    (whole,) = online(hub, tmp_path, {"config": "first"})
    (part,) = tmp_path.rglob("train-00001-of-00002.parquet")
    part.resolve().unlink()
    part.unlink()
    assert "error" in found(tmp_path, OFFLINE, {"config": "first"})[0]
    assert online(hub, tmp_path, {"config": "first"}) == [whole]
    for listing in tmp_path.rglob("trees"):  # earlier versions of the client keep no such listing
        shutil.rmtree(listing)
    part.unlink()
    assert "error" in found(tmp_path, OFFLINE, {"config": "first"})[0]


@needs_library
def test_a_data_set_without_configurations_is_read_by_the_names_of_its_files(
    tmp_path: Path,
) -> None:
    hub = Hub()
    lines = b'{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n'
    hub.commit({"train.jsonl": lines, "test.jsonl": lines, "small.py": b"raise"}, "main")
    read, wrong = online(hub, tmp_path, {}, {"config": "x"})
    assert read["train"]["text"] == ["a", "b"]
    assert "leave out data_config" in wrong["error"]
    assert found(tmp_path, OFFLINE) == [read]


@needs_library
def test_damaged_data_is_refused_in_words(tmp_path: Path) -> None:
    table = b"text,label\na,x\n"
    about = "---\nconfigs: [{data_files: %s}]\n---\n"
    damaged: list[tuple[dict[str, bytes], str]] = [
        ({"train.parquet": b"PAR1 no", "test.csv": table}, "its files cannot be read: "),
        ({"train.parquet": b"PAR1", "test.parquet": b"PAR1"}, "can be read"),
        ({"small.py": b"raise SystemExit"}, "its files cannot be read: "),
        ({"train.jsonl": b"{", "test.jsonl": b"{"}, "can be read"),
        ({"README.md": (about % "../../x.csv").encode()}, "lie in its repository, got ../../x"),
        ({"README.md": (about % "'http://x/y.csv'").encode()}, "in its repository, got http:"),
        ({"README.md": (about % "a.csv, f: 1").encode(), "a.csv": table}, "got 'f'"),
        ({"README.md": (about % "'*.xyz'").encode(), "a.xyz": table}, "of one kind among"),
        ({"README.md": b"---\n{\n---\n"}, "the hub said: while parsing"),
    ]
    hub = Hub()
    commits = [hub.commit(files, "main") for files, _ in damaged]
    found = online(hub, tmp_path, *({"revision": commit} for commit in commits))
    for one, (_, says) in zip(found, damaged, strict=True):
        assert says in one["error"]
        assert "\n" not in one["error"]


@needs_library
def test_a_run_keeps_the_revision_and_hash_of_its_data(tmp_path: Path) -> None:
    hub, files = Hub(), files_of()
    files["first/train-00000-of-00002.parquet"] = packed(
        {"text": [f"thing {k}" for k in range(64)], "label": [k % 2 for k in range(64)]}
    )
    commit = hub.commit(files, "main")
    config = {
        "name": "hub",
        "task": {"model": "tiny", "data": NAME, "data_config": "first", "data_revision": commit},
        "training": "none",
        "shards": {"min_examples": 1},
        "fleet": {"devices": [{"profile": "jetson-nano-maxn", "link": "wifi", "count": 3}]},
        "pacing": {"kind": "synchronous", "cohort": 2},
        "stop": {"rounds": 1},
        "strategy": {"kind": "fedlora", "rank": 2},
    }
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config), "utf-8")
    root = Path(__file__).parents[2]
    with serving(hub) as address:
        done = subprocess.run(
            [sys.executable, "-m", "analysis", "run", "x.yaml"],
            env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": address,
                 "PYTHONPATH": os.pathsep.join([str(root), *sys.path])},
            cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (manifest,) = tmp_path.rglob("manifest.json")
    data = json.loads(manifest.read_text("utf-8"))["data"]
    assert data["source"] == f"{NAME}@{commit}, first: train and test"
    assert data["sha256"] == sha256(files, "first/")


def test_without_the_library_the_extra_is_named(tmp_path: Path) -> None:
    hidden = tmp_path / "sitecustomize.py"
    hidden.write_text(
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'datasets' else find(name, *a)\n"
    )
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    (said,) = found(tmp_path, {**OFFLINE, "PYTHONPATH": paths})
    assert "pip install 'fedclock[hub]'" in said["error"]
