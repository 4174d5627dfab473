"""Keeps training results on disk, so that nothing is trained twice.

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
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from devices.vocabulary.plan import Adapter, Factors, TrainingPlan
from devices.vocabulary.stacks import stacks_of
from devices.vocabulary.trainer import (
    Evaluation,
    OwnTest,
    SalienceMetric,
    Trainer,
    TrainingJob,
    TrainingResult,
)
from simulator.log.disk import write_atomically
from simulator.log.manifest import RunFolderError
from simulator.workers.context import Context
from traces.arrays import FloatArray

T = TypeVar("T")
Array = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Tensors = Mapping[str, Array]
SUFFIX = ".result"
VALUE = "value/"
"""The prefix of a metric's name in a kept evaluation."""
CHECKSUM_BYTES = 32
MAX_BYTES = 4 * 2**30


class DamagedResultError(ValueError):
    """This error says that a file does not hold the result that its name stands for."""


class KeptResults(Protocol):
    """Kept results are a place that stores results by their keys."""

    def read(self, key: str, decode: Callable[[Tensors], T]) -> T | None:
        """Return the decoded result, or None where there is none that can be used.

        ``decode`` raises ValueError or KeyError on arrays that are not what it expects.
        """
        ...

    def write(self, key: str, tensors: Tensors) -> None:
        """Keep a result."""
        ...


class Checkpoint:
    """A checkpoint keeps the results of an unfinished run; ``warn`` is told of damaged ones.

    Raises RunFolderError where a result cannot be written: an interrupted run would lose it.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self._folder, self._warn = folder, warn

    def read(self, key: str, decode: Callable[[Tensors], T]) -> T | None:
        file = self._folder / f"{key}{SUFFIX}"
        try:
            return read_result(file, decode)
        except DamagedResultError as error:
            self._warn(f"checkpoint: {error}: trained again")
        except OSError as error:
            self._warn(f"checkpoint: {file} cannot be read ({error.strerror}): trained again")
        return None

    def write(self, key: str, tensors: Tensors) -> None:
        try:
            # A run folder from elsewhere may have links that lead out of it.
            if self._folder.is_symlink():
                raise OSError("it must be a folder of its own, not a link")
            self._folder.mkdir(parents=True, exist_ok=True)
            write_result(self._folder / f"{key}{SUFFIX}", tensors)
        except OSError as error:
            raise RunFolderError(
                f"training results must be kept until the run is done, but {self._folder} cannot "
                f"be written: {error}"
            ) from None


def read_result(file: Path, decode: Callable[[Tensors], T]) -> T | None:
    """Return the decoded result in a file, or None where there is no such file.

    Raises DamagedResultError where it holds something else, and OSError where it cannot be read
    or is no regular file. No link is followed, and nothing waits for a pipe.
    """
    try:
        with regular_file(file) as opened:
            content = opened.read()
    except FileNotFoundError:
        return None
    said, packed = content[:CHECKSUM_BYTES], content[CHECKSUM_BYTES:]
    if said != checksum(file.stem, packed):
        raise DamagedResultError(f"{file} is damaged (its checksum differs)")
    try:
        return decode(load(packed))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DamagedResultError(f"{file} holds no result of this training ({error})") from None


def write_result(file: Path, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a result behind its checksum. Raises OSError where that cannot be done."""
    packed = save({name: np.ascontiguousarray(values) for name, values in tensors.items()})
    write_atomically(file, checksum(file.stem, packed) + packed)


@contextmanager
def regular_file(file: Path) -> Iterator[BinaryIO]:
    """Open a file of ours and note that it was used. Raises as ``read_result`` does."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as opened:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "it must be a regular file")
        if status.st_size > MAX_BYTES:
            raise DamagedResultError(
                f"{file} must hold at most {MAX_BYTES} bytes, got {status.st_size}"
            )
        with suppress(OSError):  # sets the time by which a cache removes the least recently used
            os.utime(descriptor)
        yield opened


def checksum(key: str, packed: bytes | memoryview) -> bytes:
    """Return the SHA-256 of name and content: a result under another result's name is damaged."""
    sha = hashlib.sha256(key.encode())
    sha.update(packed)
    return sha.digest()


class CheckpointedTrainer:
    """This trainer asks another one only for results that are not kept in ``results``.

    ``context`` names everything beside a call's arguments that its result depends on. Counted are
    the jobs that were asked for, those among them that are trained in one pass with others, and
    those that the other trainer was asked for.
    """

    def __init__(self, trainer: Trainer, results: KeptResults, context: Context) -> None:
        self._trainer, self._results, self._context = trainer, results, context
        self.num_asked = self.num_stacked = self.num_passed_on = 0

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        stacks = stacks_of(jobs)
        self.num_asked += len(jobs)
        self.num_stacked += sum(len(stack) for stack in stacks if len(stack) > 1)
        keys = self._job_keys(jobs, stacks)
        found = [
            self._results.read(key, partial(_to_result, start=job.broadcast.adapter))
            for key, job in zip(keys, jobs, strict=True)
        ]
        # A stack is trained again as a whole, since the digits of a job depend on the whole stack.
        broken = [stack for stack in stacks if any(found[k] is None for k in stack)]
        wanted = sorted(k for stack in broken for k in stack)
        self.num_passed_on += len(wanted)
        trained = self._trainer.train([jobs[k] for k in wanted])
        for k, result in zip(wanted, trained, strict=True):
            if found[k] is None:
                start = jobs[k].broadcast.adapter
                tensors = _to_tensors(result, start)
                self._results.write(keys[k], tensors)
                found[k] = _to_result(tensors, start)  # the same bits as when it is read later
        return [result for result in found if result is not None]

    def evaluate(self, adapter: Adapter) -> Evaluation:
        key = _key(self._context.evaluation, "evaluate", adapter.digest)
        found = self._results.read(key, _to_evaluation)
        if found is None:
            found = self._trainer.evaluate(adapter)
            self._results.write(key, _of_evaluation(found))
        return found

    def evaluate_own(self, tests: Sequence[OwnTest]) -> list[Evaluation]:
        keys = [self._own_key(test) for test in tests]
        found = [self._results.read(key, _to_evaluation) for key in keys]
        wanted = [k for k, known in enumerate(found) if known is None]
        tested = self._trainer.evaluate_own([tests[k] for k in wanted])
        for k, evaluation in zip(wanted, tested, strict=True):
            self._results.write(keys[k], _of_evaluation(evaluation))
            found[k] = evaluation
        return [evaluation for evaluation in found if evaluation is not None]

    def _own_key(self, test: OwnTest) -> str:
        examples = test.examples.astype(np.int64).tobytes()
        return _key(self._context.evaluation, "evaluate own", test.adapter.digest, examples)

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        key = _key(self._context.salience, "salience", metric)
        found = self._results.read(key, _to_salience)
        if found is None:
            found = self._trainer.block_salience(metric)
            self._results.write(key, {"salience": found})
        return found

    def block_fisher(self, adapter: Adapter) -> FloatArray:
        key = _key(self._context.salience, "fisher", adapter.digest)
        found = self._results.read(key, _to_salience)
        if found is None:
            found = self._trainer.block_fisher(adapter)
            self._results.write(key, {"salience": found})
        return found

    def _job_keys(self, jobs: Sequence[TrainingJob], stacks: Sequence[Sequence[int]]) -> list[str]:
        """Return a key for each job: the job itself, its place in its stack, and the stack."""
        context = self._context.training
        keys = [_key(context, *_job_parts(job)) for job in jobs]
        stacked = {
            k: _key(context, "stacked", str(place), *(keys[other] for other in stack))
            for stack in stacks
            if len(stack) > 1
            for place, k in enumerate(stack)
        }
        return [stacked.get(k, key) for k, key in enumerate(keys)]


def _key(context: str, *parts: str | bytes) -> str:
    sha = hashlib.sha256(context.encode())
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "big") + data)
    return sha.hexdigest()[:40]


def _job_parts(job: TrainingJob) -> tuple[str | bytes, ...]:
    examples, controls = job.examples.astype(np.int64).tobytes(), job.broadcast.controls
    return (
        "train and losses",
        _trained_work(job.plan),
        job.broadcast.adapter.digest,
        examples,
        str(job.seed),
        # For jobs that may be stacked, the order of the batches depends on the version.
        "" if job.stack == 1 else f"in the order of version {job.broadcast.version}",
        *([] if job.rate_share == 1.0 else [f"rate share {job.rate_share!r}"]),
        *([] if controls is None else [f"corrected by {controls.correction.digest}"]),
    )


def _trained_work(plan: TrainingPlan) -> bytes:
    """Return what a plan says of the training itself, and nothing of what is sent."""
    grid = plan.terms
    steps = (plan.local_steps, plan.batch_size, plan.num_micro_batches)
    formats = (plan.weight_formats, plan.activation_bits)
    objective = (plan.tail_penalty, plan.proximal_mu)
    said = repr((grid.held.shape, grid.trained_factors, steps, formats, objective)).encode()
    return b"|".join([said, np.packbits(grid.held).tobytes(), np.packbits(grid.trained).tobytes()])


def _to_tensors(result: TrainingResult, start: Adapter) -> Tensors:
    """Return the arrays that training has changed, and the losses."""
    before = _arrays(start)
    changed = {
        name: values
        for name, values in _arrays(result.adapter).items()
        if values.tobytes() != before[name].tobytes()  # compares bits, since -0.0 == 0.0
    }
    if result.diverged:  # stored as character codes, since the file holds only tensors
        changed["diverged"] = np.array([ord(letter) for letter in result.diverged], np.float32)
    return {**changed, "losses": np.array([result.train_loss, result.squared_loss])}


def _to_result(tensors: Tensors, start: Adapter) -> TrainingResult:
    """Return the result that was kept. Raises ValueError on arrays of another adapter's shapes."""
    before = _arrays(start)
    changed = {k: v for k, v in tensors.items() if k not in ("losses", "diverged")}
    for name, values in changed.items():
        there = before.get(name)
        if there is None or (values.shape, values.dtype) != (there.shape, there.dtype):
            raise ValueError(f"{name} is no array of this adapter: {values.dtype} {values.shape}")
    arrays = before | {
        name: np.asarray(values, dtype=np.float32) for name, values in changed.items()
    }
    factors = {
        key: Factors(arrays[f"{key.block}/{key.module}/a"], arrays[f"{key.block}/{key.module}/b"])
        for key in start.factors
    }
    head = {name: arrays[f"head/{name}"] for name in start.head}
    adapter = replace(start, factors=factors, head=head)
    diverged = "".join(chr(int(code)) for code in tensors.get("diverged", np.zeros(0)))
    train_loss, squared_loss = _row(tensors["losses"])
    return TrainingResult(adapter, train_loss, squared_loss, diverged)


def _of_evaluation(found: Evaluation) -> Tensors:
    named = {f"{VALUE}{name}": np.array([value]) for name, value in found.values.items()}
    return {**named, "by_group": np.array(found.by_group, np.float64)}


def _to_evaluation(tensors: Tensors) -> Evaluation:
    values = {
        name.removeprefix(VALUE): _row(row)[0]
        for name, row in tensors.items()
        if name.startswith(VALUE)
    }
    return Evaluation(values, tuple(_row(tensors["by_group"])))


def _to_salience(tensors: Tensors) -> FloatArray:
    return np.array(_row(tensors["salience"]), dtype=np.float64)


def _row(values: Array) -> list[float]:
    """Return the numbers of an array of one dimension. Raises ValueError on any other."""
    if values.ndim != 1 or values.dtype.kind != "f":
        raise ValueError(f"a row of numbers is expected, found {values.dtype} {values.shape}")
    return [float(value) for value in values]


def _arrays(adapter: Adapter) -> dict[str, npt.NDArray[np.float32]]:
    """Return every array of an adapter by a name of its own."""
    arrays = {f"head/{name}": values for name, values in adapter.head.items()}
    for key, factors in adapter.factors.items():
        arrays[f"{key.block}/{key.module}/a"] = factors.a
        arrays[f"{key.block}/{key.module}/b"] = factors.b
    return arrays
