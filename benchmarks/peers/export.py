"""Writes the job from FedClock's own config: its shards, its first adapter and its batches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from devices.cost.blocks import BatchShape, block_terms
from devices.cost.flops import backward_flops, forward_flops
from devices.options import BatchKind
from devices.training.batches import draw_batches
from devices.training.export import save_peft
from devices.training.tokens import tokenize
from devices.vocabulary.plan import Adapter
from devices.vocabulary.trainer import (
    Evaluation,
    NullTrainer,
    OwnTest,
    SalienceMetric,
    TrainingJob,
    TrainingResult,
)
from simulator.config.experiment import load_experiment
from simulator.engine.server import simulate
from simulator.runs.run import federation_of
from simulator.world.build import World, build_world
from traces.arrays import FloatArray


@dataclass(frozen=True)
class Size:
    """A size says how much is trained, and of what."""

    clients: int = 20
    cohort: int = 20
    steps: int = 10
    batch_size: int = 16
    rounds: int = 10  # rounds for which batches are exported
    seed: int = 0


@dataclass(frozen=True)
class Way:
    """A way says how FedClock and the others compute; ``attention`` is that of the others."""

    training: dict[str, Any] = field(default_factory=dict)  # by default FedClock's own defaults
    attention: str = "sdpa"  # the default of transformers
    threads: int = 1
    workers: int = 1


class Recorder:
    """This trainer trains nothing and keeps the jobs."""

    def __init__(self, num_blocks: int) -> None:
        self._null = NullTrainer(num_blocks)
        self.rounds: list[Sequence[TrainingJob]] = []

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        self.rounds.append(jobs)
        return self._null.train(jobs)

    def evaluate(self, adapter: Adapter) -> Evaluation:
        return self._null.evaluate(adapter)

    def evaluate_own(self, tests: Sequence[OwnTest]) -> list[Evaluation]:
        return self._null.evaluate_own(tests)

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        return self._null.block_salience(metric)

    def block_fisher(self, adapter: Adapter) -> FloatArray:
        return self._null.block_fisher(adapter)


def experiment(size: Size, training: dict[str, Any] | str) -> dict[str, Any]:
    """Return the job as FedClock's config: every device of the fleet holds every plan."""
    divided = size.clients == size.cohort
    return {
        "name": "bench",
        "seed": size.seed,
        "task": {"model": "minilm-l6", "data": "wordnet-16", "max_length": 32},
        "shards": {"kind": "iid"} if divided else {"kind": "drawn", "examples": 640},
        "local": {"batch_size": size.batch_size, "steps": size.steps},
        "training": training,
        "fleet": {
            "devices": [{"profile": "jetson-nano-maxn", "count": size.clients, "link": "wifi"}]
        },
        "pacing": {"kind": "synchronous", "cohort": size.cohort},
        "evaluation": {"every": size.rounds, "examples": 16},
        "stop": {"rounds": size.rounds},
        "strategy": {"kind": "fedlora", "rank": 8, "alpha": 16.0, "depth": "all"},
    }


def export(folder: Path, size: Size, way: Way) -> None:
    """Write the job for all participants into a new folder."""
    folder.mkdir()
    file = folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(experiment(size, "none")), "utf-8")
    (config,) = load_experiment(file)
    world = build_world(config, str(file))
    recorder = Recorder(world.model.num_blocks)
    simulate(federation_of(config, world, recorder))
    first = recorder.rounds[0][0].broadcast.adapter
    save_peft(first, folder / "adapter", source=world.source, spec=world.model)
    (folder / "adapter" / "adapter_model.safetensors").rename(folder / "initial.safetensors")
    (folder / "train.json").write_text(json.dumps(world.task.data.train["text"]))
    (folder / "test.json").write_text(json.dumps(world.task.data.test["text"]))
    tokens = tokenize(world.source, world.task.data.train["text"], config.task.max_length)
    lengths = np.array([len(row) for row in tokens])
    file.write_text(yaml.safe_dump(experiment(size, dict(way.training))), "utf-8")
    (config,) = load_experiment(file)
    arrays = arrays_of(world, recorder, lengths, config.training.batches)
    np.savez(folder / "arrays.npz", **arrays)
    settings = {
        "model": str(world.source.directory),
        "max_length": config.task.max_length,
        "attention": way.attention,
        "targets": list(config.task.targets),
        "rank": first.rank,
        "alpha": first.scale * first.rank,
        "num_classes": world.model.head.num_outputs,
        "learning_rate": config.training.learning_rate,
        "weight_decay": config.training.weight_decay,
        "steps": size.steps,
        "batch_size": size.batch_size,
        "seed": size.seed,
        "threads": way.threads,
        "workers": way.workers,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    padded = lengths[arrays["batches"]].max(axis=-1)
    (folder / "flops.json").write_text(json.dumps(flops_of(world, recorder, padded)))


def arrays_of(
    world: World, recorder: Recorder, lengths: np.ndarray, kind: BatchKind
) -> dict[str, np.ndarray]:
    """Return the labels, the shards joined with the end of each, and the batches."""
    jobs = recorder.rounds[0]
    return {
        "labels": world.task.groups("train"),
        "test_labels": world.task.groups("test"),
        "shards": np.concatenate([job.examples for job in jobs]),
        "shard_ends": np.cumsum([len(job.examples) for job in jobs]),
        "batches": np.array(
            [[batches_of(job, lengths, kind) for job in jobs] for jobs in recorder.rounds]
        ),
    }


def batches_of(job: TrainingJob, lengths: np.ndarray, kind: BatchKind) -> list[np.ndarray]:
    """Return the batches that FedClock's trainer draws for this job."""
    seed, _ = np.random.SeedSequence(job.seed).generate_state(2)
    return draw_batches(
        job.examples,
        lengths,
        steps=job.plan.local_steps,
        batch_size=job.plan.batch_size,
        rng=np.random.default_rng(seed),
        kind=kind,
    )


def flops_of(world: World, recorder: Recorder, lengths: np.ndarray) -> float:
    """Return the FLOPs of a mean round, by the tokens of each text (rounds, clients, steps)."""
    model, plan = world.model, recorder.rounds[0][0].plan
    blocks = block_terms(model, plan.terms)
    values, counts = np.unique(lengths, return_counts=True)
    total = 0
    for length, count in zip(values.tolist(), counts.tolist(), strict=True):
        batch = BatchShape(plan.batch_size, length, is_padded=True, bits=32)
        step = forward_flops(model, blocks, batch) + backward_flops(model, blocks, batch)
        total += count * step
    return total / len(lengths)
