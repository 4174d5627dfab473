"""Fine-tunes the real model, by torch, transformers and peft."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from devices.datasets.dataset import SPLITS, Split
from devices.models.catalog import ModelSource
from devices.models.spec import ModelSpec
from devices.tasks.task import Batch, Encoded, Task, groups_or_none_at_all, num_predicted
from devices.training.activations import RoundingNoise, packed_activations
from devices.training.adapters import LoadedAdapter, load_adapter
from devices.training.batches import (
    TokenizedTexts,
    draw_batches,
    in_common_order,
    length_sorted_chunks,
    stratified_subset,
)
from devices.training.config import TrainingConfig
from devices.training.evaluation import score_chunk
from devices.training.files import said_in_words
from devices.training.host import choose_host, keep_freed_memory, make_reproducible
from devices.training.model import load_model
from devices.training.optimizers import Updater
from devices.training.penalties import Penalty, correction_term, penalties_of
from devices.training.predictor import ModelPredictor
from devices.training.prefixes import KeptPrefixes
from devices.training.salience import block_fisher, block_salience
from devices.training.stacked import LoadedStack, load_stack
from devices.training.tokens import ModelTokenizer
from devices.vocabulary.plan import Adapter
from devices.vocabulary.stacks import stacks_of
from devices.vocabulary.trainer import (
    ChunkScore,
    Evaluation,
    HostNames,
    OwnTest,
    SalienceMetric,
    TrainingJob,
    TrainingResult,
)
from traces.arrays import FloatArray, IntArray

SUBSET_SEED = 0
"""The seed by which the texts are drawn that every run is tested and calibrated on."""
CALIBRATION_EXAMPLES = 64
"""The number of training texts that block salience is measured on."""
MAX_LOGITS = 2**24
"""Logits of tokens that are computed at once outside training: 64 MiB of them in fp32."""
MAX_SHOWN = 20
"""Outputs of a model that a message shows."""

GetTokens = Callable[[Split, Callable[[], Encoded]], Encoded]
"""A function that returns the tokens of a split, and may call its second argument to make them."""


def make_tokens(_: Split, make: Callable[[], Encoded]) -> Encoded:
    """Return the tokens of a split by making them, without a cache."""
    return make()


class TorchTrainer:
    """This trainer trains jobs in turn on one frozen base model.

    ``source`` holds the model's files and ``spec`` its sizes, with the attention of ``config`` and
    the head of ``task``. ``get_tokens`` may know the tokens of a split without making them. Raises
    ValueError for a model that cannot be loaded, a config that it cannot be trained by, or an
    example that cannot be learned from.
    """

    def __init__(
        self,
        config: TrainingConfig,
        task: Task,
        *,
        source: ModelSource,
        spec: ModelSpec,
        get_tokens: GetTokens = make_tokens,
    ) -> None:
        self._config, self._task = config, task
        self.host = choose_host(config.compute, config.dtype)
        self.source = source
        self.spec = spec
        make_reproducible(self.host)
        keep_freed_memory()
        self._model = load_model(self.source, self.spec, self.host)
        _check_length(config, self._model.max_length)
        tokenizer = ModelTokenizer(self.source, config.max_length, self._model.vocabulary_size)
        self._predictor = ModelPredictor(
            self._model, tokenizer, self._at_most(config.eval_batch_size)
        )
        self._train_texts, self._test_texts = (self._encoded(split, get_tokens) for split in SPLITS)
        groups = groups_or_none_at_all(task, "test")
        chosen = stratified_subset(groups, config.eval_examples, SUBSET_SEED)
        self._test_texts, (tested,) = self._test_texts.rows_of([chosen])
        self._test_chunks = length_sorted_chunks(
            tested, self._test_texts.lengths, self._at_most(config.eval_batch_size)
        )
        self._prefixes = KeptPrefixes(self._model)
        self._check_runs()

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        results: dict[int, TrainingResult] = {}
        for members in stacks_of(jobs):
            stack = [jobs[k] for k in members]
            trained = self._train_stack(stack) if len(stack) > 1 else [self._train(stack[0])]
            results |= zip(members, trained, strict=True)
        return [results[k] for k in range(len(jobs))]

    def evaluate(self, adapter: Adapter) -> Evaluation:
        return self._task.evaluation(self.score(adapter, range(self.num_chunks)))

    def evaluate_own(self, tests: Sequence[OwnTest]) -> list[Evaluation]:
        return [self._task.evaluation(self._own_scores(test)) for test in tests]

    @property
    def host_names(self) -> HostNames:
        return self.host.names

    @property
    def num_chunks(self) -> int:
        """Return the number of chunks that an evaluation can be shared out in."""
        return len(self._test_chunks)

    def score(self, adapter: Adapter, chunks: Iterable[int]) -> list[ChunkScore]:
        """Score ``adapter`` on each of these chunks, numbered from 0."""
        return [
            score_chunk(
                self._predictor,
                self._task,
                adapter,
                texts=self._test_texts,
                chunk=self._test_chunks[k],
                begin=partial(self._prefixes.reused, k, adapter),
            )
            for k in chunks
        ]

    def _own_scores(self, test: OwnTest) -> Iterator[ChunkScore]:
        texts, (rows,) = self._train_texts.rows_of([test.examples])
        size = self._at_most(self._config.eval_batch_size)
        for chunk in length_sorted_chunks(rows, texts.lengths, size):
            yield score_chunk(
                self._predictor,
                self._task,
                test.adapter,
                texts=texts,
                chunk=chunk,
                begin=nullcontext,
            )

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        groups = groups_or_none_at_all(self._task, "train")
        chosen = stratified_subset(groups, self._at_most(CALIBRATION_EXAMPLES), SUBSET_SEED)
        texts, (rows,) = self._train_texts.rows_of([chosen])
        batch = texts.batch(rows[: len(chosen)], self.host.device)
        return block_salience(self._model, self._task, batch, metric)

    def block_fisher(self, adapter: Adapter) -> FloatArray:
        groups = groups_or_none_at_all(self._task, "train")
        chosen = stratified_subset(groups, CALIBRATION_EXAMPLES, SUBSET_SEED)
        texts = [self._train_texts.batch(one, self.host.device) for one in chosen[:, None]]
        return block_fisher(self._model, self._task, texts, adapter)

    def _check_runs(self) -> None:
        """Raise ValueError for a model that fails on its first text, or gives no number."""
        texts, (places,) = self._train_texts.rows_of([np.zeros(1, dtype=np.int64)])
        one = texts.batch(places[:1], self.host.device)
        with said_in_words(self.source, "that can be trained for the task"):
            with torch.no_grad():
                logits = self._model.logits(one)
            rows = one.input_ids.shape if self.spec.head.per == "token" else (1,)
            expected = (*rows, self.spec.head.num_outputs)
            if logits.shape != expected or not logits.isfinite().all():
                shown = logits.flatten()[:MAX_SHOWN].tolist()
                raise ValueError(f"{shown} for the first text")

    def _at_most(self, wanted: int) -> int:
        """Return how many examples to run at once, so that the logits of their tokens fit."""
        if self.spec.head.per == "text":
            return wanted
        of_one = self._config.max_length * self.spec.head.num_outputs
        return max(1, min(wanted, MAX_LOGITS // of_one))

    def _encoded(self, split: Split, get_tokens: GetTokens) -> TokenizedTexts:
        make = partial(self._task.encode, split, self._predictor.tokenizer)
        encoded = get_tokens(split, make)
        return TokenizedTexts(*encoded, pad_id=self._model.pad_id)

    def _train(self, job: TrainingJob) -> TrainingResult:
        corrections = self._corrections([job])
        loaded = load_adapter(self._model, job.broadcast.adapter, job.plan.terms)
        updater = Updater(self._config, loaded.parameters(), rate_share=job.rate_share)
        penalties = penalties_of(loaded, job.plan)
        penalties += [correction_term(loaded.parameters(), added) for added in corrections]
        losses = self._steps([job], updater, penalties)
        return self._result(job, loaded.read(), losses[:, :, 0])

    def _train_stack(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        corrections = self._corrections(jobs)
        loaded = load_stack(self._model, jobs)
        updater = Updater(
            self._config,
            loaded.parameters(),
            rate_share=jobs[0].rate_share,
            num_jobs=len(jobs),
            parts=loaded.own_parts(),
        )
        penalties = loaded.penalties()
        penalties += [correction_term(loaded.parameters(), added) for added in corrections]
        with loaded.heads():
            losses = self._steps(jobs, updater, penalties)
        adapters = enumerate(loaded.read())
        return [self._result(jobs[k], adapter, losses[:, :, k]) for k, adapter in adapters]

    def _corrections(self, jobs: Sequence[TrainingJob]) -> list[list[Tensor]]:
        """Return what is added to the gradient of each parameter; empty without control variates.

        A correction has the form of an adapter, and finds its places by being loaded as one.
        """
        if not jobs[0].plan.terms.has_controls:
            return []
        moved = [with_correction_loaded(job) for job in jobs]
        loaded: LoadedAdapter | LoadedStack
        if len(moved) > 1:
            loaded = load_stack(self._model, moved)
        else:
            loaded = load_adapter(self._model, moved[0].broadcast.adapter, moved[0].plan.terms)
        return [[parameter.detach().clone() for parameter in loaded.parameters()]]

    def _steps(
        self, jobs: Sequence[TrainingJob], updater: Updater, penalties: Sequence[Penalty]
    ) -> FloatArray:
        """Train the jobs, and return (steps, 2, jobs): the losses before each step.

        They are the mean over the examples of a batch, and the mean of their squares.
        """
        plan, start, model = jobs[0].plan, jobs[0].broadcast.adapter, self._model
        model.weights.use(plan.weight_formats, start.merged, start.scale)
        micro_batch = plan.micro_batch or plan.batch_size
        seeds = [np.random.SeedSequence(job.seed).generate_state(2).tolist() for job in jobs]
        texts, shards = self._train_texts.rows_of([job.examples for job in jobs])
        drawn = [
            self._draw(replace(job, examples=shard), texts.lengths, batch_seed)
            for job, shard, (batch_seed, _) in zip(jobs, shards, seeds, strict=True)
        ]
        noise = RoundingNoise(seeds[0][1], self.host.device)
        packing = packed_activations(model.blocks, plan.activation_bits, noise)
        with packing, model.only(plan.present):
            steps = [
                self._step(updater, texts, np.stack(batches), penalties, micro_batch=micro_batch)
                for batches in zip(*drawn, strict=True)
            ]
        # The losses are copied to the host at the end, since a copy after each step would make a
        # GPU wait.
        losses: FloatArray = torch.stack(steps).cpu().double().numpy()
        return losses

    def _draw(self, job: TrainingJob, lengths: IntArray, seed: int) -> list[IntArray]:
        """Draw the batches of a job, each (batch_size,), that follow from its seed."""
        batches = draw_batches(
            job.examples,
            lengths,
            steps=job.plan.local_steps,
            batch_size=job.plan.batch_size,
            rng=np.random.default_rng(seed),
            kind=self._config.batches,
        )
        if job.stack == 1:
            return batches
        return in_common_order(batches, lengths, np.random.default_rng(job.broadcast.version))

    def _step(
        self,
        updater: Updater,
        texts: TokenizedTexts,
        indices: IntArray,
        penalties: Sequence[Penalty],
        *,
        micro_batch: int,
    ) -> Tensor:
        """Take one step on the texts at ``indices``, (jobs, B); return the losses, (2, jobs).

        These are before the step, and without the penalties that the plan adds. The gradients of
        the micro-batches add up to that of the whole batch, each counting by its predictions.
        """
        num_jobs, size = indices.shape
        parts = [
            texts.batch(part.ravel(), self.host.device)
            for part in np.split(indices, size // micro_batch, axis=1)
        ]
        shares = _shares(parts, num_jobs) if len(parts) > 1 else [None]
        means, squares = [], []
        for batch, share in zip(parts, shares, strict=True):
            # The logits are not bound to a name, so that their memory is freed before the backward
            # pass: those of tokens are large.
            mean, each = self._task.losses(self._model.logits(batch), batch, num_jobs=num_jobs)
            if share is not None:
                mean = mean * share
            added = penalties if batch is parts[0] else ()
            # A job's loss depends on its own parameters alone, so the gradient of the sum over jobs
            # is each job's own gradient.
            objective = sum((penalty() for penalty in added), start=mean.sum())
            objective.backward()  # type: ignore[no-untyped-call]
            means.append(mean.detach())
            squares.append(each.square().view(num_jobs, -1).mean(1))
        updater.step()
        if len(parts) == 1:
            return torch.stack([means[0], squares[0]])
        return torch.stack([torch.stack(means).sum(0), torch.stack(squares).mean(0)])

    def _result(self, job: TrainingJob, adapter: Adapter, losses: FloatArray) -> TrainingResult:
        """Put the result of one job together; ``losses`` is (steps, 2)."""
        where = f"device {job.plan.device_id}"
        diverged = _diverged(
            losses[:, 0].tolist(), adapter, max_loss=self._config.max_loss, where=where
        )
        mean, squared = (float(column.mean()) for column in losses.T)
        return TrainingResult(adapter, mean, squared, diverged)


def with_correction_loaded(job: TrainingJob) -> TrainingJob:
    """Return the job with the correction of its gradients in place of the adapter."""
    controls = job.broadcast.controls
    assert controls is not None, "a plan with controls comes with a broadcast that has them"
    return replace(job, broadcast=replace(job.broadcast, adapter=controls.correction))


def _shares(parts: Sequence[Batch], num_jobs: int) -> list[Tensor]:
    """Return, for each part of a batch, its share of what each job is asked to predict, (jobs,)."""
    counts = torch.stack([num_predicted(batch).view(num_jobs, -1).sum(1) for batch in parts])
    return list((counts / counts.sum(0)).float())


def _check_length(config: TrainingConfig, positions: int) -> None:
    if config.max_length > positions:
        raise ValueError(
            f"max_length must be at most {positions}, the positions of {config.model}, "
            f"got {config.max_length}"
        )


def _diverged(losses: Sequence[float], adapter: Adapter, *, max_loss: float, where: str) -> str:
    """Say in words how training went to infinity; empty if it did not."""
    broken = [step for step, loss in enumerate(losses, start=1) if not abs(loss) <= max_loss]
    if broken:
        return (
            f"the loss must stay finite and at most {max_loss:g}, got {losses[broken[0] - 1]:g} "
            f"at step {broken[0]} of {len(losses)} on {where}; lower training.learning_rate"
        )
    arrays = [*adapter.head.values(), *(part for pair in adapter.factors.values() for part in pair)]
    if not all(np.isfinite(array).all() for array in arrays):
        return (
            f"factors must stay finite, got others after step {len(losses)} on {where}; "
            "lower training.learning_rate"
        )
    return ""
