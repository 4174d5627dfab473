"""A run that is killed at any moment, and started again, is the run that never was.

Children are forked from here with the model in place, so that each kill meets a run at work and not
one that still loads. Two ways to die: after a time drawn at random, and just before the n-th thing
that a run does to a file, which hits the short moments that a clock would miss.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from simulator.config.experiment import load_experiment
from simulator.log.progress import reporter
from simulator.runs.preparation import prepare
from simulator.runs.run import run
from simulator.workers.trainers import Trainers
from tests.simulator.own_data import write_data
from tests.torture import long, scaled

CONFIG: dict[str, Any] = {
    "name": "killed",
    "label": "one",
    "task": {"model": "tiny", "max_length": 8},
    "training": {"learning_rate": 5e-3, "dtype": "fp32", "compute": "cpu"},
    "evaluation": {"examples": 8},
    "shards": {"min_examples": 4},
    "local": {"batch_size": 4, "steps": 1},
    "fleet": {
        "memory_share": 0.001,
        "when_offline": "restart",
        "devices": [
            {"profile": "jetson-nano-maxn", "count": 3, "link": "wifi", "latency": 0.05},
            {"profile": "phone-snapdragon-665", "count": 2, "link": "lte-driving"},
        ],
    },
    "faults": {  # the run lasts about a second
        "crash": {"schedule": [{"device": k, "at_s": 0.1, "down_s": 0.05} for k in range(5)]},
        "link_loss": {"per_hour": 3600.0, "down_s": 0.02},
    },
    "pacing": {"kind": "fedbuff", "concurrency": 3, "size": 2},
    "stop": {"rounds": 4},
    "strategy": {"kind": "fedquad", "rank": 2},
}
KILLED = -signal.SIGKILL
Doom = Callable[[Path], None]
"""Called in the child with the output folder, before the run begins."""


def live(_: Path) -> None:
    """Let the child live."""


def die_after(seconds: float) -> Doom:
    def doom(_: Path) -> None:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))

    return doom


def watch_files(output: Path, seen: Callable[[], None]) -> None:
    """Call ``seen`` before each thing that is done to a file below ``output``."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir") and arguments:
            first = arguments[0]
            # rmtree names files relative to their folder's descriptor, without the path.
            if isinstance(first, str | os.PathLike) and (
                str(first).startswith(str(output)) or event in ("os.remove", "os.rmdir")
            ):
                seen()

    sys.addaudithook(hook)


def die_before_file_operation(number: int) -> Doom:
    def doom(output: Path) -> None:
        left = [number]

        def seen() -> None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        watch_files(output, seen)

    return doom


def count_file_operations(report: Path) -> Doom:
    def doom(output: Path) -> None:
        descriptor = os.open(report, os.O_WRONLY | os.O_CREAT)
        watch_files(output, lambda: os.write(descriptor, b".") and None)

    return doom


@dataclass
class Harness:
    """A harness runs the experiment in children; ``trainers`` holds the model that they inherit."""

    file: Path
    trainers: Trainers

    def run(self, output: Path, doom: Doom = live) -> int:
        """Return the exit status of a child, negative for the signal that ended it."""
        child = os.fork()
        if child == 0:
            self._in_child(output, doom)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def _in_child(self, output: Path, doom: Doom) -> None:
        status = 1
        try:
            with output.with_suffix(".log").open("a") as log:
                doom(output)
                self.simulate(output, Console(file=log))
            status = 0
        finally:
            os._exit(status)

    def simulate(self, output: Path, console: Console) -> None:
        (config,) = load_experiment(self.file)
        prepared = prepare(config, output / config.folder, str(self.file))
        run(prepared, trainers=self.trainers, report=reporter(console))


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    folder = tmp_path_factory.mktemp("killed")
    task = {**CONFIG["task"], "data": str(write_data(folder / "data"))}
    (folder / "x.yaml").write_text(yaml.safe_dump({**CONFIG, "task": task}), "utf-8")
    made = Harness(folder / "x.yaml", Trainers(1))
    made.simulate(folder / "warm", Console(file=(folder / "warm.log").open("w")))
    return made


@dataclass
class Unbroken:
    files: dict[str, bytes]
    num_file_operations: int
    seconds: float


@pytest.fixture(scope="module")
def unbroken(harness: Harness) -> Unbroken:
    folder = harness.file.parent
    assert harness.run(folder / "whole", count_file_operations(folder / "count")) == 0
    began = time.perf_counter()
    assert harness.run(folder / "timed") == 0
    seconds = time.perf_counter() - began
    found = snapshot(folder / "whole")
    assert found == snapshot(folder / "timed")
    (log,) = (content for name, content in found.items() if name.endswith("events.jsonl"))
    assert b'"event": "crashed"' in log
    assert {"adapter/adapter_model.safetensors", "events.jsonl"} <= {
        name.split("/", 2)[2] for name in found
    }
    return Unbroken(found, (folder / "count").stat().st_size, seconds)


def snapshot(output: Path) -> dict[str, bytes]:
    """Return every file below, by its path; of a manifest, what does not speak of the host."""
    found = {}
    for file in sorted(path for path in output.rglob("*") if path.is_file()):
        content = file.read_bytes()
        if file.name == "manifest.json":
            manifest = json.loads(content)
            assert manifest.pop("wall_s") > 0
            for count in ("num_trainings", "num_trainings_reused"):  # these are of the last attempt
                manifest.pop(count, None)
            del manifest["git_sha"], manifest["git_dirty"]  # the code may be edited meanwhile
            content = json.dumps(manifest).encode()
        found[str(file.relative_to(output))] = content
    return found


def assert_resumes(harness: Harness, unbroken: Unbroken, output: Path) -> None:
    assert harness.run(output) == 0, output.with_suffix(".log").read_text()
    assert snapshot(output) == unbroken.files
    shutil.rmtree(output)


@pytest.mark.torture
def test_a_run_killed_at_random_moments_ends_as_the_unbroken_one(
    harness: Harness, unbroken: Unbroken, tmp_path: Path
) -> None:
    rng, num_killed, num_runs = np.random.default_rng(1), 0, 0
    while num_killed < scaled(2, 100, least=4):
        output = tmp_path / str(num_runs)
        for _ in range(rng.integers(1, 4)):  # kills the run again while it resumes
            status = harness.run(output, die_after(rng.random() * unbroken.seconds))
            assert status in (KILLED, 0)  # a resumed run may end before it is killed
            num_killed += status == KILLED
        assert_resumes(harness, unbroken, output)
        num_runs += 1
    print(f"{num_runs} runs, killed {num_killed} times at random moments")


@long
@pytest.mark.torture
def test_a_run_killed_before_any_file_operation_ends_as_the_unbroken_one(
    harness: Harness, unbroken: Unbroken, tmp_path: Path
) -> None:
    total = unbroken.num_file_operations
    assert total > 50
    few = np.random.default_rng(2).permutation(total)[: scaled(6, total)].tolist()
    # The last ones write tables and manifest, and remove the checkpoint.
    chosen = sorted({0, 1, 2, 3, *few, total - 1, total - 2})
    print(f"killed before {len(chosen)} of {total} file operations")
    for number in chosen:
        output = tmp_path / str(number)
        assert harness.run(output, die_before_file_operation(number)) == KILLED
        assert_resumes(harness, unbroken, output)


def test_a_damaged_checkpoint_is_said_and_the_older_results_are_used(
    harness: Harness, unbroken: Unbroken, tmp_path: Path
) -> None:
    output = tmp_path / "cut"
    assert harness.run(output, die_before_file_operation(unbroken.num_file_operations // 2)) < 0
    kept = sorted(output.rglob("*.result"), key=lambda file: file.stat().st_mtime_ns)
    assert len(kept) > 2
    newest = kept[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    assert harness.run(output) == 0
    said = " ".join(output.with_suffix(".log").read_text().split())
    assert f"{newest.name} is damaged (its checksum differs): trained again" in said
    assert said.count("is damaged") == 1
    assert snapshot(output) == unbroken.files
    manifest = json.loads(next(output.rglob("manifest.json")).read_text())
    assert 0 < manifest["num_trainings_reused"] < manifest["num_trainings"]
