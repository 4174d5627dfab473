"""The event log of one small run of each strategy stays the same, byte for byte.

The runs are timing only, so that they are the same on every processor. A change that is meant to
move them says so: ``pytest tests/simulator/test_golden.py --update-golden``, with the reason in the
commit.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from rich.console import Console

from algorithms.registry import STRATEGIES
from simulator.config.experiment import load_experiment
from simulator.log.progress import PlainReporter
from simulator.runs.preparation import prepare
from simulator.runs.run import run
from simulator.workers.pool import available_cores
from simulator.workers.trainers import Trainers

GOLDEN = Path(__file__).parent / "golden"
CONFIG = {
    "name": "golden",
    "task": {"model": "tiny", "max_length": 16},
    "training": "none",
    "local": {"batch_size": 8, "epochs": 0.02},
    "fleet": {
        # Devices range from one that holds one trained block to one that holds everything.
        "memory_share": [6.6e-4, 9.6e-4],
        "devices": [
            {"profile": "raspberry-pi-3b-plus", "count": 4, "link": "3g"},
            {"profile": "raspberry-pi-4-2gb", "link": "lte-driving", "memory_share": 3.1e-4},
            {"profile": "jetson-nano-5w", "link": "5g", "memory_share": 2.0e-4},
        ],
    },
    "pacing": {"kind": "synchronous", "cohort": 5, "deadline_s": 0.5},
    "stop": {"rounds": 4},
}


@pytest.mark.parametrize("kind", STRATEGIES)
def test_the_log_is_the_golden_one(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump({**CONFIG, "strategy": {"kind": kind, "rank": 4}}), "utf-8")
    (config,) = load_experiment(file)
    report = PlainReporter(Console(quiet=True))
    with Trainers(available_cores()) as trainers:
        run(prepare(config, tmp_path / "run", str(file)), trainers=trainers, report=report)
    log = (tmp_path / "run" / "events.jsonl").read_text("utf-8")
    golden = GOLDEN / f"{kind}.jsonl"
    if request.config.getoption("--update-golden"):
        golden.write_text(log, "utf-8")
    assert log == golden.read_text("utf-8")
