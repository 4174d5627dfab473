"""Training results kept on disk while a run is unfinished.

A simulation is a function of its config, and what takes time in it is training. So an unbroken run
and a resumed one are the same thing: the resumed one replays from instant 0, and finds here what
was trained before.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from devices.plan import Adapter, Factors, ModuleKey
from devices.trainer import Evaluation, SalienceMetric, Trainer, TrainingJob, TrainingResult
from traces.bandwidth import FloatArray

Tensors = Mapping[str, npt.NDArray[np.float32] | npt.NDArray[np.float64]]


class CheckpointedTrainer:
    """Asks ``trainer`` only for what ``folder`` does not hold.

    ``context`` names everything beside the job that a result depends on: weights, data, settings.
    """

    def __init__(self, trainer: Trainer, folder: Path, context: str) -> None:
        self._trainer, self._folder, self._context = trainer, folder, context

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        keys = [self._key(*_job_parts(job)) for job in jobs]
        found = [self._read(key) for key in keys]
        missing = [k for k, tensors in enumerate(found) if tensors is None]
        trained = self._trainer.train([jobs[k] for k in missing])
        for k, result in zip(missing, trained, strict=True):
            found[k] = _to_tensors(result)
            self._write(keys[k], found[k] or {})
        return [
            _to_result(tensors or {}, job.broadcast.adapter)
            for tensors, job in zip(found, jobs, strict=True)
        ]

    def evaluate(self, adapter: Adapter) -> Evaluation:
        key = self._key("evaluate", adapter.digest)
        tensors = self._read(key)
        if tensors is None:
            found = self._trainer.evaluate(adapter)
            tensors = {"evaluation": np.array([found.accuracy, found.loss, *found.by_class])}
            self._write(key, tensors)
        accuracy, loss, *by_class = tensors["evaluation"].tolist()
        return Evaluation(accuracy, loss, tuple(by_class))

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        key = self._key("salience", metric)
        tensors = self._read(key)
        if tensors is None:
            tensors = {"salience": self._trainer.block_salience(metric)}
            self._write(key, tensors)
        return np.asarray(tensors["salience"], dtype=np.float64)

    def _key(self, *parts: str | bytes) -> str:
        sha = hashlib.sha256(self._context.encode())
        for part in parts:
            data = part.encode() if isinstance(part, str) else part
            sha.update(len(data).to_bytes(8, "big") + data)
        return sha.hexdigest()[:40]

    def _read(self, key: str) -> Tensors | None:
        try:
            tensors: Tensors = load_file(self._folder / f"{key}.safetensors")
        except (FileNotFoundError, SafetensorError):
            return None  # absent, or cut short by a crash: train it again
        return tensors

    def _write(self, key: str, tensors: Tensors) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._folder / f"{key}.partial"
        save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, partial)
        os.replace(partial, self._folder / f"{key}.safetensors")


def _job_parts(job: TrainingJob) -> tuple[str | bytes, ...]:
    examples = job.examples.astype(np.int64).tobytes()
    return (
        "train and losses",
        job.plan.workload,
        job.broadcast.adapter.digest,
        examples,
        str(job.seed),
    )


def _to_tensors(result: TrainingResult) -> Tensors:
    tensors: dict[str, npt.NDArray[np.float32] | npt.NDArray[np.float64]] = {}
    for key, factors in result.adapter.factors.items():
        tensors[f"{key.block}/{key.module}/a"] = factors.a
        tensors[f"{key.block}/{key.module}/b"] = factors.b
    tensors.update({f"head/{name}": values for name, values in result.adapter.head.items()})
    if result.diverged:  # as characters, since a file of tensors holds nothing else
        tensors["diverged"] = np.array([ord(letter) for letter in result.diverged], np.float64)
    return tensors | {"losses": np.array([result.train_loss, result.squared_loss])}


def _to_result(tensors: Tensors, like: Adapter) -> TrainingResult:
    def array(name: str) -> npt.NDArray[np.float32]:
        return np.asarray(tensors[name], dtype=np.float32)

    factors = {
        ModuleKey(*key): Factors(
            array(f"{key.block}/{key.module}/a"), array(f"{key.block}/{key.module}/b")
        )
        for key in like.factors
    }
    head = {name: array(f"head/{name}") for name in like.head}
    adapter = replace(like, factors=factors, head=head)
    diverged = "".join(chr(int(code)) for code in tensors.get("diverged", np.zeros(0)))
    train_loss, squared_loss = tensors["losses"].tolist()
    return TrainingResult(adapter, train_loss, squared_loss, diverged)
