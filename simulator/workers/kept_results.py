"""Training results kept on disk while a run is unfinished.

A simulation is a function of its config, and what takes time in it is training. So an unbroken run
and a resumed one are the same thing: the resumed one replays from instant 0, and finds here what
was trained before.

Each result is a file of its own that is written once, behind a checksum over its name and content.
Nothing newer ever takes its place, so whatever moment a process is killed at, what it had trained
before is there, and a file that is damaged costs the training of that one result.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from devices.vocabulary.plan import Adapter, Factors
from devices.vocabulary.stacks import stacks_of
from devices.vocabulary.trainer import (
    Evaluation,
    SalienceMetric,
    Trainer,
    TrainingJob,
    TrainingResult,
)
from simulator.log.disk import write_atomically
from simulator.log.manifest import RunFolderError
from traces.arrays import Float32Array, FloatArray

Array = Float32Array | FloatArray
Tensors = Mapping[str, Array]
SUFFIX = ".result"
CHECKSUM_BYTES = 32


class CheckpointedTrainer:
    """Asks ``trainer`` only for what ``folder`` does not hold.

    ``context`` names everything beside the job that a result depends on: weights, data, settings.
    ``warn`` is told of each file that is damaged.
    """

    def __init__(
        self, trainer: Trainer, folder: Path, context: str, *, warn: Callable[[str], None]
    ) -> None:
        self._trainer, self._folder, self._context, self._warn = trainer, folder, context, warn

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        stacks = stacks_of(jobs)
        keys = self._job_keys(jobs, stacks)
        found = [self._read(key) for key in keys]
        # A stack is trained again as a whole: without the others a job comes to other digits.
        broken = [stack for stack in stacks if any(found[k] is None for k in stack)]
        wanted = sorted(k for stack in broken for k in stack)
        trained = self._trainer.train([jobs[k] for k in wanted])
        for k, result in zip(wanted, trained, strict=True):
            if found[k] is None:
                found[k] = _to_tensors(result, jobs[k].broadcast.adapter)
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

    def _job_keys(self, jobs: Sequence[TrainingJob], stacks: Sequence[Sequence[int]]) -> list[str]:
        """By the job, its place in its stack, and the stack."""
        keys = [self._key(*_job_parts(job)) for job in jobs]
        stacked = {
            k: self._key("stacked", str(place), *(keys[other] for other in stack))
            for stack in stacks
            if len(stack) > 1
            for place, k in enumerate(stack)
        }
        return [stacked.get(k, key) for k, key in enumerate(keys)]

    def _key(self, *parts: str | bytes) -> str:
        sha = hashlib.sha256(self._context.encode())
        for part in parts:
            data = part.encode() if isinstance(part, str) else part
            sha.update(len(data).to_bytes(8, "big") + data)
        return sha.hexdigest()[:40]

    def _read(self, key: str) -> Tensors | None:
        file = self._folder / f"{key}{SUFFIX}"
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn(f"checkpoint: {file} cannot be read ({error.strerror}): trained again")
            return None
        checksum, packed = content[:CHECKSUM_BYTES], content[CHECKSUM_BYTES:]
        if checksum != _checksum(key, packed):
            self._warn(f"checkpoint: {file} is damaged (its checksum differs): trained again")
            return None
        with suppress(OSError):  # a cache lets go of what was used the longest ago
            os.utime(file)
        tensors: Tensors = load(packed)
        return tensors

    def _write(self, key: str, tensors: Tensors) -> None:
        packed = save({name: np.ascontiguousarray(values) for name, values in tensors.items()})
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._folder / f"{key}{SUFFIX}", _checksum(key, packed) + packed)
        except OSError as error:
            raise RunFolderError(
                f"training results must be kept until the run is done, but {self._folder} cannot "
                f"be written: {error}"
            ) from None


def _checksum(key: str, packed: bytes) -> bytes:
    """Of the name too: a result that lies under another's name is none."""
    return hashlib.sha256(key.encode() + packed).digest()


def _job_parts(job: TrainingJob) -> tuple[str | bytes, ...]:
    examples = job.examples.astype(np.int64).tobytes()
    return (
        "train and losses",
        job.plan.workload,
        job.broadcast.adapter.digest,
        examples,
        str(job.seed),
        # Where jobs may be stacked, the version says in what order the batches come.
        "" if job.stack == 1 else f"{job.stack} from version {job.broadcast.version}",
    )


def _to_tensors(result: TrainingResult, start: Adapter) -> Tensors:
    """The arrays that training has changed, and the losses."""
    before = _arrays(start)
    changed = {
        name: values
        for name, values in _arrays(result.adapter).items()
        if values.tobytes() != before[name].tobytes()  # bits: -0.0 and 0.0 are equal
    }
    if result.diverged:  # as characters, since a file of tensors holds nothing else
        changed["diverged"] = np.array([ord(letter) for letter in result.diverged], np.float32)
    return {**changed, "losses": np.array([result.train_loss, result.squared_loss])}


def _to_result(tensors: Tensors, start: Adapter) -> TrainingResult:
    arrays = _arrays(start) | {
        name: np.asarray(values, dtype=np.float32) for name, values in tensors.items()
    }
    factors = {
        key: Factors(arrays[f"{key.block}/{key.module}/a"], arrays[f"{key.block}/{key.module}/b"])
        for key in start.factors
    }
    head = {name: arrays[f"head/{name}"] for name in start.head}
    adapter = replace(start, factors=factors, head=head)
    diverged = "".join(chr(int(code)) for code in tensors.get("diverged", np.zeros(0)))
    train_loss, squared_loss = tensors["losses"].tolist()
    return TrainingResult(adapter, train_loss, squared_loss, diverged)


def _arrays(adapter: Adapter) -> dict[str, Float32Array]:
    arrays = {f"head/{name}": values for name, values in adapter.head.items()}
    for key, factors in adapter.factors.items():
        arrays[f"{key.block}/{key.module}/a"] = factors.a
        arrays[f"{key.block}/{key.module}/b"] = factors.b
    return arrays
