"""Trains by pfl: FederatedAveraging with a PyTorchModel on a SimulatedBackend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.model.pytorch import PyTorchModel

from peers.job import Job, State, copy_of, loss_of, trained


class Network(torch.nn.Module):
    """This network is the model as pfl wants it: a loss and metrics of a user's data."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.network = job.network()
        self._job = job

    def loss(self, indices: torch.Tensor) -> torch.Tensor:
        return loss_of(self.network, self._job.batch(indices.numpy()))

    def metrics(self, indices: torch.Tensor) -> dict[str, Any]:
        return {}


def train(folder: Path, rounds: int) -> State:
    """Train every user in every central iteration."""
    job = Job.load(folder)
    own = job.settings
    rng = np.random.default_rng(own.seed)

    def user(client: int) -> Dataset:
        return Dataset((torch.from_numpy(job.draw(client, rng).ravel()),), user_id=str(client))

    users = FederatedDataset(user, get_user_sampler("minimize_reuse", list(range(len(job.shards)))))
    network = Network(job)
    model = PyTorchModel(
        network,
        lambda parameters, lr: job.optimizer(parameters),
        torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1.0),
    )
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds + 1,
            train_cohort_size=len(job.shards),
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=users, val_data=users),
        model,
        NNTrainHyperParams(
            local_num_epochs=1,
            local_learning_rate=own.learning_rate,
            local_batch_size=own.batch_size,
        ),
        send_metrics_to_platform=False,
    )
    return copy_of(trained(network.network))
