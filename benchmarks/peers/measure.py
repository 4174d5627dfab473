"""Measures one run of one participant, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

LIMIT_S = 3600
SAMPLE_S = 0.25
BENCHMARKS = Path(__file__).parents[1]


class RunError(Exception):
    """This error says that a participant did not end well, in its last line."""


@dataclass(frozen=True)
class Participant:
    """A participant is a module below peers/ with its interpreter and its changes to the config."""

    name: str
    module: str
    python: Path
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """A run holds the measured times and memory of one process, from its start to its end."""

    participant: str
    rounds: int
    imports_s: float
    first_batch_s: float  # since the start, as imports_s and trained_s are too
    trained_s: float
    cpu_s: float  # processor time of the process and of its children that have ended
    peak_bytes: int  # peak of this process alone
    tree_peak_bytes: int  # sampled peak of the proportional set sizes of it and its descendants


def measure(participant: Participant, job: Path, rounds: int, out: Path) -> Run:
    """Run a participant into a new folder. Raises RunError where it does not end well."""
    out.mkdir()
    command = [str(participant.python), "-W", "ignore", "-m", "peers", participant.module,
               str(job), str(rounds), str(out), *participant.overrides]  # fmt: skip
    with (out / "log").open("w+") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=_environment(job, out), start_new_session=True
        )
        tree = _Tree(process.pid)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        finally:
            # Ends processes that the run has left behind, or all of them on Ctrl-C.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            tree.stop()
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        lines = [line for line in log.read().splitlines() if line.strip()]
    if process.returncode:
        raise RunError((lines or [f"exit code {process.returncode}"])[-1])
    times: dict[str, Any] = json.loads((out / "times.json").read_text())
    return Run(
        participant.name,
        rounds,
        **times,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_bytes=usage.ru_maxrss * 1024,
        tree_peak_bytes=tree.peak_bytes,
    )


def _environment(job: Path, out: Path) -> dict[str, str]:
    """Return our environment without settings of threads, and with what the participants read."""
    own = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    return own | {
        "PYTHONPATH": str(BENCHMARKS),
        "BENCH_JOB": str(job),
        "BENCH_BEGUN": str(out / "begun"),
        "BENCH_STARTED_S": str(time.monotonic()),
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
    }


class _Tree:
    """This thread watches the memory of a process and of all below it, and ends it after
    ``LIMIT_S``."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the watch, since the process has ended."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        ends_s = time.monotonic() + LIMIT_S
        with suppress(psutil.Error):
            root = psutil.Process(self._pid)
            while not self._over.wait(SAMPLE_S):
                now = 0
                for process in [root, *root.children(recursive=True)]:
                    with suppress(psutil.Error):
                        now += process.memory_full_info().pss
                self.peak_bytes = max(self.peak_bytes, now)
                if time.monotonic() > ends_s:
                    root.kill()
