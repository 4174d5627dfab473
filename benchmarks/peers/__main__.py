"""Trains as one participant, and says when what was done.

python -m peers PARTICIPANT JOB_FOLDER ROUNDS RESULT_FOLDER [OVERRIDE ...]

``BENCH_STARTED_S`` is the monotonic clock when this process was started.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path

name, job_folder, rounds, result_folder, *overrides = sys.argv[1:]
participant = importlib.import_module(f"peers.{name}")
imported_s = time.monotonic()
adapter = participant.train(Path(job_folder), int(rounds), *overrides)
trained_s = time.monotonic()

from peers.job import save  # noqa: E402  # not before: it takes torch, which not everyone does

out, started_s = Path(result_folder), float(os.environ["BENCH_STARTED_S"])
save(adapter, out / "adapter.safetensors")
begun = out / "begun"  # written by Job.begin in the first process that calls it
times = {
    "imports_s": imported_s - started_s,
    "first_batch_s": float(begun.read_text()) - started_s if begun.exists() else None,
    "trained_s": trained_s - started_s,
}
(out / "times.json").write_text(json.dumps(times))
