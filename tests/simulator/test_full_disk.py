"""A disk that is full, a folder that is read-only, and two processes on one folder."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from rich.console import Console

from simulator.config.experiment import load_experiment
from simulator.log.manifest import RunFolderError, read_manifest
from simulator.log.progress import PlainReporter
from simulator.log.run_folder import RunFolder
from simulator.runs.preparation import prepare
from simulator.runs.run import run
from simulator.workers.trainers import Trainers
from tests.simulator.test_command import SMALL, fedclock, write
from tests.torture import long, some

ONE = {k: v for k, v in SMALL.items() if k != "strategies"} | {
    "strategy": {"kind": "fedlora", "rank": 2}
}
CONFIG = {"seed": 0}


def limited(size_bytes: int, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line where no file may grow beyond a size, as on a full disk (EFBIG)."""
    command = [sys.executable, "-m", "analysis", *map(str, arguments), "--no-cache"]
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes)),
    )


@pytest.mark.parametrize(
    ("rounds", "size_bytes", "cut"),
    some(
        [
            (12, 3_000, "events.jsonl"),
            (12, 1_000, "config.yaml"),
            (12, 17_500, "events.jsonl"),
            (2, 10_000, "clients.parquet"),
        ],
        4,
    ),
)
def test_a_run_that_cannot_write_says_so_and_goes_on_later(
    rounds: int, size_bytes: int, cut: str, tmp_path: Path
) -> None:
    """``cut`` is the first file that does not find room."""
    file = write(tmp_path, {**ONE, "stop": {"rounds": rounds}})
    whole = fedclock("run", file, "--output", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    sizes = {
        f.name: f.stat().st_size for f in next((tmp_path / "whole" / "small").iterdir()).iterdir()
    }
    assert sizes[cut] > size_bytes
    stopped = limited(size_bytes, "run", file, "--output", "cut", cwd=tmp_path)
    assert stopped.returncode == 2, stopped.stdout
    assert "error: a run folder must be writable, got" in stopped.stderr
    assert "File too large" in stopped.stderr
    assert "once it is, the same command goes on from here" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    (folder,) = (tmp_path / "cut" / "small").iterdir()
    assert read_manifest(folder).get("status") != "done"
    assert not list(folder.glob("*.partial"))
    events = folder / "events.jsonl"
    if events.exists():
        assert all(json.loads(line) for line in events.read_text("utf-8").splitlines())
    again = fedclock("run", file, "--output", "cut", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    expected = next((tmp_path / "whole" / "small").iterdir()) / "events.jsonl"
    assert events.read_bytes() == expected.read_bytes()


NOBODY = 65534


def said_to_nobody(act: Callable[[], object], errors: Path) -> str:
    """Return the error that an act ends in, in a fork that may not write everywhere.

    A fork, since it has all modules loaded: root may have the interpreter where nobody else reads.
    """
    errors.touch()
    child = os.fork()
    if child == 0:
        with errors.open("w") as said:
            try:
                if os.geteuid() == 0:
                    os.setgroups([])
                    os.setgid(NOBODY)
                    os.setuid(NOBODY)
                act()
            except BaseException as error:
                said.write(f"{type(error).__name__}: {error}")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    return errors.read_text()


def test_a_read_only_folder_is_refused_before_anything_is_simulated(tmp_path: Path) -> None:
    report = PlainReporter(Console(quiet=True))
    # pytest's own folders are closed to other users, and this test acts as another user.
    with TemporaryDirectory() as made, Trainers(1) as trainers:
        folder = Path(made)
        folder.chmod(0o755)
        file = write(folder, {**ONE, "training": "none"})
        (config,) = load_experiment(file)

        def simulate(output: str) -> Path:
            prepared = prepare(config, folder / output / "small", str(file))
            return run(prepared, trainers=trainers, report=report)

        simulate("whole")  # imports modules that are loaded late
        (folder / "runs").mkdir(mode=0o555)
        said = said_to_nobody(lambda: simulate("runs"), tmp_path / "said.txt")
        assert said.startswith(f"RunFolderError: a run folder must be writable, got {folder}/runs")
        assert "Permission denied" in said
        assert not list((folder / "runs").iterdir())


def test_a_file_system_without_writing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the system answers on a disk that is mounted read-only, also for root."""

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(RunFolderError, match=r"must be writable, got .*Read-only file system"):
        RunFolder(tmp_path / "run", CONFIG, {})


def test_a_folder_that_could_not_be_begun_is_not_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
        with pytest.raises(RunFolderError, match="No space"):
            RunFolder(tmp_path / "run", CONFIG, {})
    RunFolder(tmp_path / "run", CONFIG, {}).close("done", {})


def test_a_run_that_another_process_finished_meanwhile_is_kept(tmp_path: Path) -> None:
    """Both have looked before the first began; the second comes when the lock is free again."""
    (config,) = load_experiment(write(tmp_path, ONE))
    first, second = (prepare(config, tmp_path / "run", "x") for _ in range(2))
    assert not second.is_finished
    report = PlainReporter(Console(quiet=True))
    with Trainers(1) as trainers:
        run(first, trainers=trainers, report=report)
        before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "run").iterdir()}
        said: list[str] = []
        report.step = said.append  # type: ignore[method-assign]
        assert run(second, trainers=trainers, report=report) == tmp_path / "run"
    after = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "run").iterdir()}
    assert after == before
    assert any("was finished by another process, kept" in line for line in said)


@long
def test_two_processes_at_once_make_one_run(tmp_path: Path) -> None:
    """One does the work; the other is told of it, or finds it done. Neither spoils the folder."""
    file = write(tmp_path, ONE)
    command = [sys.executable, "-m", "analysis", "run", str(file), "--no-cache"]
    both = [
        subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, stdout=-3)
        for _ in range(2)
    ]
    ends = [(process.communicate()[1], process.returncode) for process in both]
    assert 0 in [code for _, code in ends]
    assert all(code == 0 or "one process at a time" in said for said, code in ends)
    (folder,) = (tmp_path / "runs" / "small").iterdir()
    assert read_manifest(folder)["status"] == "done"
    assert not list(folder.glob("*.partial"))
