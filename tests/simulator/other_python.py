"""What two interpreters must agree on; the other one runs this file, without torch or pytest."""

from __future__ import annotations

import hashlib
import json
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console

from algorithms.registry import STRATEGIES
from simulator.config.experiment import load_experiment
from simulator.engine.server import simulate
from simulator.log.progress import reporter
from simulator.runs.preparation import prepare
from simulator.runs.run import run
from simulator.workers.trainers import Trainers
from tests.simulator.small import DriftTrainer, Memory, make_device, make_federation


def timing_only(file: Path, output: Path) -> str:
    """Return the hash of the event log of a config, simulated into a folder."""
    (config,) = load_experiment(file)
    with Trainers(1) as trainers:
        prepared = prepare(config, output, str(file))
        folder = run(prepared, trainers=trainers, report=reporter(Console(file=StringIO())))
    return hashlib.sha256((folder / "events.jsonl").read_bytes()).hexdigest()


def learned(kind: str) -> str:
    """Return the hash of the final adapter of a strategy whose devices learn by our arithmetic."""
    fleet = [make_device(k, budget_bytes=10**6 * (1 + k)) for k in range(3)]
    strategy = STRATEGIES[kind](rank=4)
    federation = make_federation(fleet, trainer=DriftTrainer(), strategy=strategy, rounds=3)
    return simulate(federation, Memory()).state.adapter.digest


def agreed(file: Path, output: Path) -> dict[str, str]:
    """Return the hash of a timing-only log, and of the adapter of every strategy."""
    return {"log": timing_only(file, output), **{kind: learned(kind) for kind in STRATEGIES}}


if __name__ == "__main__":
    print(json.dumps(agreed(Path(sys.argv[1]), Path(sys.argv[2]))))
