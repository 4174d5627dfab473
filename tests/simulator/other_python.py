"""Run by another interpreter: simulates a config, timing only, and prints the log's hash."""

import hashlib
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console

from simulator.experiment import load_experiment
from simulator.progress import reporter
from simulator.run import prepare, run
from simulator.trainers import Trainers

file, output = Path(sys.argv[1]), Path(sys.argv[2])
(config,) = load_experiment(file)
with Trainers(1) as trainers:
    prepared = prepare(config, output, str(file))
    folder = run(prepared, trainers=trainers, report=reporter(Console(file=StringIO())))
print(hashlib.sha256((folder / "events.jsonl").read_bytes()).hexdigest())
