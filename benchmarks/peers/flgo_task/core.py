"""Defines the job as FLGo's generator, pipe and calculator."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flgo.benchmark.base import BasicTaskCalculator, BasicTaskGenerator, BasicTaskPipe
from torch.utils.data import DataLoader, Subset, TensorDataset

from peers.job import Job, loss_of


@cache
def job() -> Job:
    """Return the job of this process."""
    return Job.load(Path(os.environ["BENCH_JOB"]))


class TaskGenerator(BasicTaskGenerator):
    """This generator gives the shards of the job."""

    def __init__(self, rawdata_path: str = "") -> None:
        super().__init__("peers.flgo_task", rawdata_path)
        self.num_clients = len(job().shards)

    def get_task_name(self) -> str:
        return self.benchmark


class TaskPipe(BasicTaskPipe):
    """This pipe makes data sets of indices, which batches turn into texts."""

    def save_task(self, generator: TaskGenerator) -> None:
        names = self.gen_client_names(generator.num_clients)
        (Path(self.task_path) / "data.json").write_text(json.dumps({"client_names": names}))

    def load_data(self, running_time_option: Any) -> dict[str, Any]:
        own = job()
        texts = TensorDataset(torch.arange(len(own.labels)))
        data: dict[str, Any] = {"server": {"test": None, "val": None}}
        for name, shard in zip(self.feddata["client_names"], own.shards, strict=True):
            data[name] = {"train": Subset(texts, shard.tolist()), "val": None, "test": None}
        return data


class TaskCalculator(BasicTaskCalculator):
    """This calculator has the loss, optimizer and batches of all participants."""

    def compute_loss(self, model: Any, data: Any) -> dict[str, torch.Tensor]:
        return {"loss": loss_of(model, data)}

    def get_optimizer(self, model: Any, **_: Any) -> torch.optim.Optimizer:
        return job().optimizer(model.parameters())

    def get_dataloader(self, dataset: Any, batch_size: int = 16, **_: Any) -> DataLoader:
        def collate(rows: list[tuple[torch.Tensor]]) -> Any:
            return job().batch(np.array([int(row[0]) for row in rows]))

        return DataLoader(dataset, int(batch_size), shuffle=True, collate_fn=collate)

    def test(self, model: Any, data: Any, *_: Any, **__: Any) -> dict[str, float]:
        return {}
