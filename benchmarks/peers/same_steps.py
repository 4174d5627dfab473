"""Trains as the loop by hand does, on the very batches that FedClock draws."""

from __future__ import annotations

from pathlib import Path

from peers.job import Job, State
from peers.loop import run


def train(folder: Path, rounds: int) -> State:
    """Train on the exported batches of the first rounds."""
    job = Job.load(folder)
    return run(job, list(job.batches[:rounds]))
