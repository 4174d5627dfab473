"""``fedclock runs`` lists runs with what became of them, and removes nothing but what was named."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_line import fedclock
from tests.simulator.test_command import SMALL, write

WriteRun = Callable[..., Path]


@pytest.fixture
def root(write_run: WriteRun, tmp_path: Path) -> Path:
    for strategy in ("fedlora", "haflq"):
        write_run(tmp_path / "runs" / "demo", strategy, num_rounds=2)
    return tmp_path / "runs"


def one(root: Path, label: str) -> Path:
    return next((root / "demo").glob(f"{label}-*"))


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_runs_are_listed_with_what_became_of_them(root: Path) -> None:
    (one(root, "haflq") / "manifest.json").write_text("{", "utf-8")
    for arguments in ((), ("runs",), ("runs/demo", "runs")):
        said = fedclock("runs", "list", *arguments, cwd=root.parent).stdout
        assert said.count("done") == said.count("damaged") == 1
        assert said.count("fedlora-") == said.count("haflq-") == 1


def test_a_run_whose_process_is_gone_is_listed_as_interrupted(root: Path) -> None:
    folder = one(root, "fedlora")
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    (folder / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}), "utf-8")
    said = fedclock("runs", "list", cwd=root.parent).stdout
    assert (said.count("interrupted"), said.count("running")) == (1, 0)
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    said = fedclock("runs", "list", cwd=root.parent).stdout
    os.close(held)
    assert (said.count("interrupted"), said.count("running")) == (0, 1)


def test_numbers_that_no_double_holds_are_left_out_of_the_list(root: Path) -> None:
    file = one(root, "haflq") / "manifest.json"
    large = {"simulated_s": 10**400, "final_accuracy": 10**400}
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | large), "utf-8")
    done = fedclock("runs", "list", cwd=root.parent)
    assert done.returncode == 0
    assert done.stdout.count("done") == 2


def test_a_run_is_shown_with_the_state_of_its_files(tmp_path: Path) -> None:
    file = write(tmp_path, {**SMALL, "title": "Five devices"})
    assert fedclock("run", file, "--only", "haflq", cwd=tmp_path).returncode == 0
    (folder,) = (tmp_path / "runs" / "small").iterdir()
    said = fedclock("runs", "show", folder, cwd=tmp_path).stdout
    shown = [line.split(maxsplit=1) for line in said.splitlines() if line.strip()]
    facts = {name: words.strip() for name, words in shown}
    assert facts["run"] == "haflq of small, seed 0"
    assert (facts["status"], facts["model"], facts["files"]) == ("done", "tiny", "as written")
    assert facts["title"] == "Five devices"
    assert "{" not in said
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    assert json.loads(fedclock("runs", "show", folder, "--json", cwd=tmp_path).stdout) == manifest
    message = fedclock("runs", "show", "runs", cwd=tmp_path).stderr
    assert "fedclock runs list runs" in message
    (folder / "events.jsonl").write_text("", "utf-8")
    said = fedclock("runs", "show", folder, cwd=tmp_path).stdout
    assert "gone or changed: events.jsonl" in said
    assert fedclock("runs", "remove", folder, "--yes", cwd=tmp_path).returncode == 0
    assert not folder.exists()


def test_removal_takes_the_runs_that_are_named_and_no_other(root: Path) -> None:
    kept = files(one(root, "haflq"))
    done = fedclock("runs", "remove", one(root, "fedlora"), "--yes", cwd=root.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "1 run removed"
    assert [path.name[:5] for path in (root / "demo").iterdir()] == ["haflq"]
    assert files(one(root, "haflq")) == kept


def test_nothing_is_removed_unasked(root: Path) -> None:
    before = files(root)
    done = fedclock("runs", "remove", "runs", cwd=root.parent)
    assert done.returncode == 2
    assert "give --yes" in done.stderr
    assert files(root) == before


KEPT = [
    "file", "folder", "link", "no run", "named like a table", "adapter/notes.txt", "adapter/mine/x",
    "checkpoint/notes.result",
]  # fmt: skip


@pytest.mark.parametrize("what", KEPT)
def test_a_folder_with_anything_else_in_it_is_kept_and_so_are_the_others(
    root: Path, what: str, tmp_path: Path
) -> None:
    folder = one(root, "haflq")
    if what == "file":
        (folder / "notes.txt").write_text("mine", "utf-8")
    elif what == "folder":
        (folder / "report").mkdir()
    elif what == "link":
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.tex").write_text("mine", "utf-8")
        (folder / "adapter").symlink_to(tmp_path / "mine")
    elif "/" in what:
        (folder / what).parent.mkdir(parents=True, exist_ok=True)
        (folder / what).write_text("mine", "utf-8")
    elif what == "named like a table":
        (folder / "faults.json").mkdir()
    else:
        (folder / "manifest.json").write_text(json.dumps({"name": "another"}), "utf-8")
    before = files(root)
    done = fedclock("runs", "remove", "runs", "--yes", cwd=root.parent)
    assert done.returncode == 2
    assert folder.name in done.stderr
    assert files(root) == before
    assert what != "link" or (tmp_path / "mine" / "thesis.tex").exists()


def test_a_run_that_is_being_written_is_kept(root: Path) -> None:
    held = os.open(one(root, "fedlora"), os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    before = files(root)
    done = fedclock("runs", "remove", "runs", "--yes", cwd=root.parent)
    os.close(held)
    assert done.returncode == 2
    assert "another one is at work" in done.stderr
    assert files(root) == before


def test_a_folder_without_runs_is_said(tmp_path: Path) -> None:
    for command in ("list", "remove", "show"):
        done = fedclock("runs", command, tmp_path, cwd=tmp_path)
        assert done.returncode == 2
        assert str(tmp_path) in done.stderr
