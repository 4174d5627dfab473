"""Training results kept on disk from one run to the next, so that nothing is trained twice.

A result is a function of weights, data, plan, broadcast, seed, dtype and code, and its key says
them all. So a comparison on other links, where cohorts and plans are the same, trains nothing.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import platformdirs

import devices
from devices.vocabulary.plan import Adapter
from devices.vocabulary.stacks import stacks_of
from devices.vocabulary.trainer import (
    Evaluation,
    SalienceMetric,
    Trainer,
    TrainingJob,
    TrainingResult,
)
from simulator.config.problems import UserError
from simulator.log.disk import PARTIAL
from traces.arrays import FloatArray

GB = 10**9
DEFAULT_GB = 4.0
STALE_S = 3600.0
"""A file that has been half written for so long was left by a process that was killed."""


@dataclass(frozen=True)
class ResultCache:
    """A folder that may hold so much between runs; several processes may use it at once."""

    folder: Path
    max_bytes: int

    def __post_init__(self) -> None:
        """Raises UserError where it cannot be written, or may hold nothing."""
        if self.max_bytes <= 0:
            raise UserError(f"--cache-gb must be above 0, got {self.max_bytes / GB:g}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            writable = os.access(self.folder, os.W_OK | os.X_OK)
        except OSError:
            writable = False
        if not writable:
            raise UserError(
                f"the cache of training results must be a folder that can be written, got "
                f"{self.folder}; choose another with --cache, or do without: --no-cache"
            )

    def trim(self) -> None:
        """Remove what was used the longest ago, until the rest is within the limit."""
        found = []
        for file in self.folder.iterdir():
            try:
                status = file.stat()
            except FileNotFoundError:
                continue  # another process was quicker
            if file.suffix == PARTIAL and time.time() - status.st_mtime < STALE_S:
                continue  # another process is writing it
            found.append((status.st_mtime, status.st_size, file))
        total = sum(size for _, size, _ in found)
        for _, size, file in sorted(found):
            if total <= self.max_bytes:
                return
            file.unlink(missing_ok=True)
            total -= size


def open_cache(folder: Path | None, max_gb: float) -> ResultCache:
    """The cache in this folder, or else in the user's own cache folder.

    Raises UserError where it cannot be written.
    """
    place = folder or Path(platformdirs.user_cache_dir("fedclock", appauthor=False)) / "results"
    return ResultCache(place, int(max_gb * GB))


@cache
def code_sha256() -> str:
    """SHA-256 of the code that trains: another version of it may come to another result."""
    root = Path(str(devices.__file__)).parent
    sha = hashlib.sha256(platform.machine().encode())
    for file in sorted(root.rglob("*.py")):
        sha.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return sha.hexdigest()


class CountedTrainer:
    """Passes everything on, and counts the jobs, and those that are stacked with others."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.num_jobs = self.num_stacked = 0

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        self.num_jobs += len(jobs)
        self.num_stacked += sum(len(stack) for stack in stacks_of(jobs) if len(stack) > 1)
        return self._trainer.train(jobs)

    def evaluate(self, adapter: Adapter) -> Evaluation:
        return self._trainer.evaluate(adapter)

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        return self._trainer.block_salience(metric)
