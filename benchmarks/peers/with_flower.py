"""Trains by Flower: a ServerApp with FedAvg and a ClientApp on Ray, as many workers as cores.

Kinder than its examples, which load the model again in every call: a worker keeps it.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from peers.job import Job, State, assign, copy_of, trained

client_app = ClientApp()


@cache
def of_this_worker(folder: str) -> tuple[Job, Any]:
    """Return the job and the model, made once in each process; workers share the cores."""
    job = Job.load(Path(folder))
    torch.set_num_threads(1)
    return job, job.network()


@client_app.train()
def fit(message: Message, context: Context) -> Message:
    """Take the steps of one client."""
    job, network = of_this_worker(os.environ["BENCH_JOB"])
    parameters = trained(network)
    assign(parameters, message.content["arrays"].to_torch_state_dict())
    client = int(context.node_config["partition-id"])
    number = message.content["config"]["server-round"]
    rng = np.random.default_rng((job.settings.seed, number, client))
    job.train_client(network, job.draw(client, rng))
    content = {
        "arrays": ArrayRecord(copy_of(parameters)),
        "metrics": MetricRecord({"num-examples": len(job.shards[client])}),
    }
    return Message(content=RecordDict(content), reply_to=message)


def train(folder: Path, rounds: int) -> State:
    """Train every client in every round."""
    job = Job.load(folder)
    server_app, found, clients = ServerApp(), {}, len(job.shards)

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients
        )
        result = strategy.start(
            grid=grid, initial_arrays=ArrayRecord(job.initial), num_rounds=rounds
        )
        found.update(result.arrays.to_torch_state_dict())

    cores = len(os.sched_getaffinity(0))
    run_simulation(
        server_app,
        client_app,
        num_supernodes=clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": cores},
        },
    )
    return found
