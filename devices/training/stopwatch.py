"""Times real training steps on this machine, which device profiles are calibrated on."""

from __future__ import annotations

import os
import time

import numpy as np
import torch
from torch.nn import functional

from devices.models.catalog import ModelSource
from devices.models.spec import ModelSpec
from devices.tasks.task import Batch
from devices.training.activations import RoundingNoise, packed_activations
from devices.training.adapters import load_adapter
from devices.training.host import Host, choose_host
from devices.training.model import load_model
from devices.training.tokens import FIRST_WORD_ID
from devices.vocabulary.plan import TrainingPlan

LEARNING_RATE = 1e-6  # so small that training on random texts never diverges


class Stopwatch:
    """A stopwatch takes single training steps of plans and times them.

    On one thread of a CPU it reads the time that the processor gave, which other programs' share is
    no part of; otherwise the time on the wall.
    """

    def __init__(self, source: ModelSource, spec: ModelSpec, host: Host, threads: int) -> None:
        self._host, self._threads = host, threads
        torch.set_num_threads(threads)
        self._model = load_model(source, spec, host)
        self._vocabulary = int(source.config["vocab_size"])

    def step_s(self, plan: TrainingPlan, length: int) -> float:
        """Time one step, in seconds, after a first that does not count.

        Texts are random and ``length`` tokens long, but for one: batches are padded, as the cost
        model has it.
        """
        spec, rng = self._model.spec, np.random.default_rng(0)
        rank = plan.terms.held.shape[2]
        loaded = load_adapter(self._model, spec.initial_adapter(rank, rank, rng), plan.terms)
        self._model.weights.use(plan.weight_formats)
        optimizer = torch.optim.AdamW(loaded.parameters(), lr=LEARNING_RATE, fused=True)
        batch = self._batch(plan.batch_size, length, rng)
        noise = RoundingNoise(0, self._host.device)
        with packed_activations(self._model.blocks, plan.activation_bits, noise):
            self._step(batch, optimizer)
            started_s = self._now_s()
            self._step(batch, optimizer)
            return self._now_s() - started_s

    def _step(self, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
        loss = functional.cross_entropy(self._model.logits(batch), batch.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    def _batch(self, size: int, length: int, rng: np.random.Generator) -> Batch:
        ids = torch.from_numpy(rng.integers(FIRST_WORD_ID, self._vocabulary, (size, length)))
        mask = torch.ones_like(ids)
        mask[-1, length // 2 :] = 0
        targets = torch.from_numpy(rng.integers(self._model.spec.head.num_outputs, size=size))
        ids, mask, targets = (part.to(self._host.device) for part in (ids, mask, targets))
        return Batch(ids, mask, targets)

    def _now_s(self) -> float:
        if self._host.device.type == "cuda":
            torch.cuda.synchronize(self._host.device)
        elif self._threads == 1:
            return time.process_time()
        return time.perf_counter()


def memory_bytes(host: Host) -> int:
    """Return the bytes that the machine has for training: of its GPU, or else its RAM."""
    if host.device.type == "cuda":
        return int(torch.cuda.get_device_properties(host.device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def processor(host: Host) -> str:
    """Return the name that the processor or GPU gives itself."""
    if host.device.type == "cuda":
        return torch.cuda.get_device_name(host.device)
    return str(torch.backends.cpu.get_cpu_capability()) + " CPU"


def hosts(compute: str) -> dict[int, Host]:
    """Return hosts by operand width in bits: fp32, and bf16 where the machine is fast in it."""
    if compute not in ("auto", "cpu", "cuda"):
        raise ValueError(f"compute must be one of auto, cpu, cuda, got {compute}")
    found = {32: choose_host(compute, "fp32")}  # type: ignore[arg-type]  # checked above
    fastest = choose_host(compute, "auto")  # type: ignore[arg-type]
    return found | ({16: fastest} if fastest.dtype == torch.bfloat16 else {})
