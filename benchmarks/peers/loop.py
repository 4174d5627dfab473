"""Trains as a loop written by hand does: one model, and the adapter put back for each client."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from peers.job import Job, State, assign, copy_of, trained


class Loop:
    """A loop does federated averaging, client by client."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._network = job.network()
        self._parameters = trained(self._network)
        self._weights = [len(shard) / sum(map(len, job.shards)) for shard in job.shards]
        self.state = copy_of(self._parameters)
        self._total = self._nothing()

    def client(self, client: int, batches: np.ndarray) -> None:
        """Train one client on the examples (steps, batch size)."""
        assign(self._parameters, self.state)
        self._job.train_client(self._network, batches)
        for name, parameter in self._parameters.items():
            self._total[name] += self._weights[client] * parameter.detach()

    def end_round(self) -> None:
        """Set the model to the average of those trained, from which the next clients start."""
        self.state, self._total = self._total, self._nothing()

    def _nothing(self) -> State:
        return {name: torch.zeros_like(value) for name, value in self.state.items()}


def train(folder: Path, rounds: int) -> State:
    """Train on batches drawn at random, padded to the longest text."""
    job = Job.load(folder)
    rng = np.random.default_rng(job.settings.seed)
    clients = range(len(job.shards))
    return run(job, [[job.draw(client, rng) for client in clients] for _ in range(rounds)])


def run(job: Job, rounds: list[list[np.ndarray]]) -> State:
    """Do federated averaging over these batches of each round and client."""
    loop = Loop(job)
    for clients in rounds:
        for client, batches in enumerate(clients):
            loop.client(client, batches)
        loop.end_round()
    return loop.state
