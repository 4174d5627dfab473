"""Real fine-tuning, by torch, transformers and peft."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from devices.data import TextDataset
from devices.model_catalog import resolve
from devices.model_spec import Attention, ModelSpec
from devices.plan import Adapter
from devices.trainer import (
    ChunkScore,
    Evaluation,
    SalienceMetric,
    TrainingJob,
    TrainingResult,
    combine,
)
from devices.training.activations import RoundingNoise, packed_activations
from devices.training.adapters import load_adapter
from devices.training.data import (
    IndexArray,
    TokenizedTexts,
    draw_batches,
    length_sorted_chunks,
    stratified_subset,
    tokenize,
)
from devices.training.evaluation import score_chunk
from devices.training.host import HostCompute, HostDtype, choose_host, make_reproducible
from devices.training.model import load_model
from devices.training.penalties import Penalty, penalties_of
from devices.training.salience import block_salience
from traces.bandwidth import FloatArray

SUBSET_SEED = 0
"""Which texts every run of every experiment is tested and calibrated on."""
CALIBRATION_EXAMPLES = 64
"""Training texts that block salience is measured on."""


@dataclass(frozen=True)
class TrainingConfig:
    """How every job of a run is trained, and how the global model is tested."""

    model: str
    targets: tuple[str, ...]
    learning_rate: float
    weight_decay: float = 0.01
    max_length: int = 32  # tokens; longer texts are cut
    dtype: HostDtype = "auto"
    compute: HostCompute = "auto"
    attention: Attention = "eager"  # on short texts in bf16, sdpa takes twice as long
    eval_examples: int = 400
    max_loss: float = 10_000.0  # a larger one counts as diverged
    eval_batch_size: int = 50  # larger ones fall out of the cache


class TorchTrainer:
    """A Trainer on one frozen base model that jobs take turns in.

    Raises ValueError for a model that cannot be had, or a config it cannot be trained by.
    """

    def __init__(self, config: TrainingConfig, dataset: TextDataset) -> None:
        self._config = config
        self.host = choose_host(config.compute, config.dtype)
        self.source = resolve(config.model)
        spec = ModelSpec.from_config(
            config.model, self.source.config, config.targets, dataset.num_classes
        )
        self.spec = replace(spec, attention=config.attention)
        make_reproducible(self.host)
        self._model = load_model(self.source, self.spec, self.host)
        _check_length(config, self._model.max_length)
        self._train_texts = self._tokenized(dataset.train_texts, dataset.train_labels)
        self._test_texts = self._tokenized(dataset.test_texts, dataset.test_labels)
        tested = stratified_subset(dataset.test_labels, config.eval_examples, SUBSET_SEED)
        self._test_chunks = length_sorted_chunks(
            tested, self._test_texts.lengths, config.eval_batch_size
        )

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        return [self._train(job) for job in jobs]

    def evaluate(self, adapter: Adapter) -> Evaluation:
        return combine(self.score(adapter, range(self.num_chunks)))

    @property
    def num_chunks(self) -> int:
        """Parts that an evaluation can be shared out in; ``combine`` puts their scores together."""
        return len(self._test_chunks)

    def score(self, adapter: Adapter, chunks: Iterable[int]) -> list[ChunkScore]:
        """What each of these chunks adds to the evaluation of ``adapter``."""
        texts = self._test_texts
        return [score_chunk(self._model, adapter, texts, self._test_chunks[k]) for k in chunks]

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        texts = self._train_texts
        chosen = stratified_subset(texts.labels, CALIBRATION_EXAMPLES, SUBSET_SEED)
        return block_salience(self._model, texts.batch(chosen, self.host.device), metric)

    def _tokenized(self, texts: Sequence[str], labels: IndexArray) -> TokenizedTexts:
        ids = tokenize(self.source, texts, self._config.max_length)
        return TokenizedTexts(ids, labels, self._model.pad_id)

    def _train(self, job: TrainingJob) -> TrainingResult:
        plan, config = job.plan, self._config
        batch_seed, noise_seed = np.random.SeedSequence(job.seed).generate_state(2)
        start = job.broadcast.adapter
        loaded = load_adapter(self._model, start, plan.terms)
        self._model.weights.use(plan.weight_formats, start.merged, start.scale)
        batches = draw_batches(
            job.examples,
            self._train_texts.lengths,
            steps=plan.local_steps,
            batch_size=plan.batch_size,
            rng=np.random.default_rng(batch_seed),
        )
        parameters = loaded.parameters()
        optimizer = torch.optim.AdamW(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        penalties = penalties_of(loaded, plan)
        noise = RoundingNoise(int(noise_seed), self.host.device)
        packing = packed_activations(self._model.blocks, plan.activation_bits, noise)
        with packing, self._model.only(plan.present):
            losses = [self._step(optimizer, indices, penalties) for indices in batches]
        means, squares = zip(*losses, strict=True)
        where = f"device {plan.device_id}"
        diverged = _diverged(means, parameters, max_loss=config.max_loss, where=where)
        means_of_both = float(np.mean(means)), float(np.mean(squares))
        return TrainingResult(loaded.read(), *means_of_both, diverged)

    def _step(
        self,
        optimizer: torch.optim.Optimizer,
        indices: IndexArray,
        penalties: Sequence[Penalty],
    ) -> tuple[float, float]:
        """Mean and mean squared loss on the texts before the step, without what the plan adds."""
        batch = self._train_texts.batch(indices, self.host.device)
        logits = self._model.logits(batch)
        loss = functional.cross_entropy(logits, batch.labels)
        objective = sum((penalty() for penalty in penalties), start=loss)
        objective.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        each = functional.cross_entropy(logits.detach().float(), batch.labels, reduction="none")
        return loss.item(), each.square().mean().item()


def _check_length(config: TrainingConfig, positions: int) -> None:
    if config.max_length > positions:
        raise ValueError(
            f"max_length must be at most {positions}, the positions of {config.model}, "
            f"got {config.max_length}"
        )


def _diverged(
    losses: Sequence[float], parameters: Sequence[nn.Parameter], *, max_loss: float, where: str
) -> str:
    """How training went to infinity; empty where it did not."""
    broken = [step for step, loss in enumerate(losses, start=1) if not abs(loss) <= max_loss]
    if broken:
        return (
            f"the loss must stay finite and at most {max_loss:g}, got {losses[broken[0] - 1]:g} "
            f"at step {broken[0]} of {len(losses)} on {where}; lower training.learning_rate"
        )
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        return (
            f"factors must stay finite, got others after step {len(losses)} on {where}; "
            "lower training.learning_rate"
        )
    return ""
