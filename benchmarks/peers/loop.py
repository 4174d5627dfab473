"""What someone writes by hand: one model, and the adapter put back for each client."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from peers.job import Job, State, assign, copy_of, trained


def train(folder: Path, rounds: int) -> State:
    """Batches drawn at random, padded to the longest."""
    job = Job.load(folder)
    rng = np.random.default_rng(job.settings.seed)
    clients = range(len(job.shards))
    return run(job, [[job.draw(client, rng) for client in clients] for _ in range(rounds)])


def run(job: Job, rounds: list[list[np.ndarray]]) -> State:
    """Federated averaging over these batches of each round and client."""
    network = job.network()
    parameters = trained(network)
    state = copy_of(parameters)
    weights = [len(shard) / sum(map(len, job.shards)) for shard in job.shards]
    for clients in rounds:
        total = {name: torch.zeros_like(value) for name, value in state.items()}
        for batches, weight in zip(clients, weights, strict=True):
            assign(parameters, state)
            job.train_client(network, batches)
            for name, parameter in parameters.items():
                total[name] += weight * parameter.detach()
        state = total
    return state
