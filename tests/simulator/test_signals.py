"""Commands that are ended by a signal at any instant: nothing lives on, nothing is left over."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.simulator.interrupts import heed_interrupts
from tests.simulator.test_command import REAL, SMALL, fedclock, write
from tests.simulator.test_crashes import snapshot
from tests.simulator.test_sweep import alive, faulty
from tests.torture import LONG, long, scaled

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
COMMANDS = {
    "report": ["report", "runs/small", "-o", "page"],
    "record": ["record", "RUN", "-o", "conditions"],
    "compare": ["compare", "few.yaml", "--workers", "2", "--no-cache"],
    "sweep": ["sweep", "few.yaml", "--seeds", "2", "--jobs", "2", "--workers", "2", "--no-cache"],
}
FEW = {**REAL, "strategies": {"fedlora": {"kind": "fedlora", "rank": 2}}, "stop": {"rounds": 2}}


def begin(command: list[str], cwd: Path) -> subprocess.Popen[bytes]:
    """Start a command as the leader of a group of processes of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "analysis", *command],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )


def assert_nobody_lives(group: int, within_s: float) -> None:
    until_s = time.monotonic() + within_s
    while left := alive(group):
        assert time.monotonic() < until_s, left
        time.sleep(0.02)


@dataclass
class Unbroken:
    """This records a command that nothing disturbed: its first folder, its files, and how long it
    ran."""

    start: Path
    command: list[str]
    files: dict[str, bytes]
    seconds: float


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with experiments, and the finished runs of one."""
    folder = tmp_path_factory.mktemp("finished")
    write(folder, FEW, "few.yaml")
    write(folder, SMALL)
    assert fedclock("run", "x.yaml", cwd=folder).returncode == 0
    return folder


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=LONG if name != "record" else ())  # seconds each
        for name in COMMANDS
    ],
)
def unbroken(
    request: pytest.FixtureRequest, finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> Unbroken:
    run = str(sorted((finished / "runs" / "small").iterdir())[0].relative_to(finished))
    command = [run if part == "RUN" else part for part in COMMANDS[request.param]]
    start = finished
    if request.param in ("compare", "sweep"):  # these commands simulate the runs
        start = tmp_path_factory.mktemp("empty")
        shutil.copy(finished / "few.yaml", start)
    found = []
    # New runs differ in the seconds that they took. Two unbroken ones show which files differ.
    for name in ("one", "two") if start != finished else ("one",):
        folder = tmp_path_factory.mktemp(request.param) / name
        shutil.copytree(start, folder)
        began = time.monotonic()
        assert begin(command, folder).wait(300) == 0
        found.append(snapshot(folder))
    seconds = time.monotonic() - began
    one, two = found[0], found[-1]
    assert one.keys() == two.keys()
    files = {name: content if two[name] == content else b"" for name, content in one.items()}
    assert sum(map(bool, files.values())) > 1
    return Unbroken(start, command, files, seconds)


@pytest.mark.torture
def test_a_signal_at_any_instant_leaves_nothing_and_the_next_command_makes_the_same(
    unbroken: Unbroken, tmp_path: Path
) -> None:
    rng, num_ended = np.random.default_rng(3), 0
    num_tries = scaled(1, 30)
    for number in range(num_tries):
        for sent in SIGNALS if num_tries > 1 else [signal.SIGKILL]:
            folder = tmp_path / f"{number}-{sent.name}"
            shutil.copytree(unbroken.start, folder)
            process = begin(unbroken.command, folder)
            try:
                status = process.wait(rng.random() * unbroken.seconds)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, sent)
                status = process.wait(60)
                num_ended += 1
            assert status in (0, -sent, 128 + sent), status
            assert_nobody_lives(process.pid, within_s=5.0)
            assert begin(unbroken.command, folder).wait(300) == 0, (sent, number)
            after = snapshot(folder)
            assert after.keys() == unbroken.files.keys()
            differing = [k for k, v in unbroken.files.items() if v and after[k] != v]
            assert not differing, (sent, differing)
            shutil.rmtree(folder)
    print(f"{unbroken.command[0]}: ended by a signal {num_ended} times")


@long
def test_the_jobs_of_a_killed_sweep_end_with_it_and_free_their_folders(tmp_path: Path) -> None:
    file = faulty(tmp_path, rounds=600, slow="slow")  # a minute of work
    command = ["sweep", str(file), "--seeds", "2", "--jobs", "2"]
    process = begin(command, tmp_path)
    until_s = time.monotonic() + 60
    while len(list(tmp_path.rglob("events.jsonl"))) < 2:
        assert time.monotonic() < until_s
        time.sleep(0.05)
    assert len(alive(process.pid)) > 2
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    assert_nobody_lives(process.pid, within_s=5.0)
