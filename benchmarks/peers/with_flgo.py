"""Trains by FLGo: gen_task with a benchmark of our own, init with FedAvg, run."""

from __future__ import annotations

import tempfile
from pathlib import Path

import flgo
from flgo.algorithm import fedavg

from peers.flgo_task.core import job as the_job
from peers.job import State, copy_of, trained


def train(folder: Path, rounds: int) -> State:
    """Train every client in every round, without FLGo's evaluations."""
    job = the_job()
    own = job.settings
    with tempfile.TemporaryDirectory() as scratch:
        task = str(Path(scratch) / "task")
        flgo.gen_task({"benchmark": {"name": "peers.flgo_task"}}, task)
        option = {
            "num_rounds": rounds,
            "sample": "full",
            "num_steps": own.steps,
            "batch_size": own.batch_size,
            "learning_rate": own.learning_rate,
            "weight_decay": own.weight_decay,
            "train_holdout": 0.0,
            "eval_interval": -1,
            "torch_num_threads": own.threads,
            "seed": own.seed,
            "no_log_console": True,
            "no_tqdm": True,
        }
        model = flgo.convert_model(lambda: job.network(), "adapted")  # FLGo takes no bound method
        runner = flgo.init(task, fedavg, option, model)
        runner.run()
    return copy_of(trained(runner.model, "model."))
