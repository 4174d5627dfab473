"""Defines what a task is: its examples, its loss, the metrics it is judged by, and its head.

torch is imported where something is computed, and nowhere else, so that a run of timing alone, and
every command that only reads, can describe a task without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np

from devices.datasets.dataset import Split, TextDataset
from devices.models.heads import Head
from devices.vocabulary.trainer import ChunkScore, Evaluation
from traces.arrays import Float32Array, IntArray

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""The target of a token that no loss is taken at; torch's own default for it."""
PHRASES = {
    "macro_f1": "macro F1",
    "matthews": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "rouge_l": "ROUGE-L",
}
"""The metrics whose names do not spell what a reader calls them."""
CORRELATIONS = frozenset({"matthews", "pearson", "spearman"})
"""The metrics that lie in [-1, 1]."""
OF_EXAMPLES = frozenset({"accuracy", "exact_match"})
"""The metrics that are the share of examples for which the model was right."""


@dataclass(frozen=True)
class Metric:
    """A metric is a number that models are judged by, and says which way it improves."""

    name: str  # a column of rounds.parquet, such as "accuracy"
    unit: Literal["share", "nats", ""]  # a share lies in [0, 1]; "" means no unit
    better: Literal["higher", "lower"]

    @property
    def phrase(self) -> str:
        """Return the name within a sentence, as "token accuracy"."""
        return PHRASES.get(self.name, self.name.replace("_", " "))

    @property
    def title(self) -> str:
        """Return the name as a title has it, as "Token accuracy"."""
        return self.phrase[:1].upper() + self.phrase[1:]

    @property
    def possible(self) -> tuple[float, float]:
        """Return the least and the most that the number can be."""
        if self.name in CORRELATIONS:
            return -1.0, 1.0
        return 0.0, 1.0 if self.unit == "share" else math.inf

    def reaches(self, value: float, target: float) -> bool:
        """Return True if ``value`` is at least as good as ``target``; no NaN is."""
        return value >= target if self.better == "higher" else value <= target

    def standard_error(self, value: float, num_examples: float) -> float:
        """Return the standard error of ``value``, measured on so many examples.

        A share p of n of them has sqrt(p (1 - p) / n); NaN for a metric that is no such share.
        """
        if self.name not in OF_EXAMPLES:
            return math.nan
        return math.sqrt(value * (1.0 - value) / num_examples)

    def best(self, values: Iterable[float]) -> float:
        """Return the best of these values, NaN left out; NaN where none is left."""
        known = [value for value in values if not math.isnan(value)]
        choose = max if self.better == "higher" else min
        return choose(known, default=math.nan)


class Offer(NamedTuple):
    """An offer holds the answers to choose from in one example, one of which is right."""

    answers: tuple[tuple[IntArray, IntArray], ...]  # token ids and targets after the prompt
    right: int


class Batch(NamedTuple):
    """A batch holds examples as tensors, padded to the longest of them."""

    input_ids: Tensor  # (B, T) token ids
    attention_mask: Tensor  # (B, T), 1 for a token of the text, 0 for padding
    targets: Tensor  # (B,) one for each text, or (B, T) one for each token, IGNORED where none is
    token_types: Tensor | None = None  # (B, T), 1 in the second text of a pair; None if not used
    offers: tuple[Offer, ...] = ()  # one for each example, if the task has offers

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Return the arguments that a model of transformers is called with, by its own names."""
        given = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return given if self.token_types is None else given | {"token_type_ids": self.token_types}


def num_predicted(batch: Batch) -> Tensor:
    """Return the number of targets of each example that the loss is a mean over, (B,)."""
    import torch

    if batch.targets.dim() == 1:
        return torch.ones_like(batch.targets)
    return (batch.targets != IGNORED).sum(1)


class Tokenize(Protocol):
    """This is the model's tokenizer, which cuts texts to the longest that the experiment allows."""

    def __call__(
        self, texts: Sequence[str], *, ends: bool = False, cut: bool = True
    ) -> list[IntArray]:
        """Return the token ids of each text, one array (tokens,) each, at full length unless cut.

        With ``ends`` a text that is not cut is followed by the token for the end of a text, unless
        the tokenizer added that itself, or has none.

        Raises ValueError for a text without a token, or with one that the model does not have.
        """
        ...

    @property
    def max_length(self) -> int:
        """Return the most tokens of an example."""
        ...

    def pairs(
        self, first: Sequence[str], second: Sequence[str]
    ) -> tuple[list[IntArray], list[IntArray] | None]:
        """Return the token ids of each pair of texts as one, and the types of these tokens.

        The longer text of a pair is cut first. Types are 0 and 1 for first and second, and None for
        a model that does not tell texts apart by types. Raises as for single texts.
        """
        ...

    def answered(
        self, prompts: Sequence[str], answers: Sequence[str], *, template: str
    ) -> list[tuple[IntArray, IntArray]]:
        """Return the token ids of each prompt, and those of its answer with its end; none is cut.

        ``template`` holds ``{prompt}`` once, or is "chat", which stands for the tokenizer's own.
        Raises as for single texts, and for a tokenizer without a chat template.
        """
        ...


class Predictor(Protocol):
    """A predictor is a model with an adapter in place, which a task asks for its predictions."""

    def logits(self, batch: Batch) -> Tensor:
        """Return the logits of a batch, (B, C) or (B, T, V), in fp32."""
        ...

    def answers(self, prompts: Sequence[IntArray], num_tokens: int) -> list[str]:
        """Continue each prompt by the most likely token, up to an end or ``num_tokens`` of them."""
        ...

    def log_likelihoods(self, rows: Sequence[tuple[IntArray, IntArray]]) -> list[float]:
        """Return the sum of the log-probabilities of the targets of each row, in nats.

        A row is token ids and their targets, both (tokens,).
        """
        ...

    def text(self, ids: IntArray) -> str:
        """Return what these token ids say, without special tokens."""
        ...


Targets = IntArray | Float32Array | Sequence[IntArray]
"""One target for each example, (n,), or one array as long as its tokens for each."""


class Encoded(NamedTuple):
    """Encoded examples are those of one split as the model takes them, in tokens and targets."""

    ids: Sequence[IntArray]  # the tokens of each example
    targets: Targets
    token_types: Sequence[IntArray] | None = None  # type of each token; None if not used
    offers: Sequence[Offer] = ()  # one for each example, if the task has offers
    row_length: int = 0  # tokens of the rows into which examples are packed; 0 if they are not


class Task(Protocol):
    """A task says what is learned from a data set, and how well a model has learned it.

    It is made from the data set, whose columns it checks, before anything is trained. Everything
    that depends on what an example is stands here, and the rest of the project asks: how examples
    become tokens and targets, the loss, the sums that an evaluation is made of, the metrics, the
    head, and the groups that a skewed partition is skewed by.
    """

    kind: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    """The columns of the data that an example is made of."""
    optional: ClassVar[tuple[str, ...]]
    """Further columns, which are read where the config names them."""
    metrics: ClassVar[tuple[Metric, ...]]
    """What a model is judged by; the first decides targets. One of them is named "loss"."""

    @property
    def data(self) -> TextDataset:
        """Return the data set that it was made from."""
        ...

    def head(self, config: Mapping[str, Any]) -> Head:
        """Return the head that a model with this ``config.json`` gets for the task."""
        ...

    def encode(self, split: Split, tokenize: Tokenize) -> Encoded:
        """Return the tokens and targets of every example of a split, in its order.

        Raises ValueError where an example cannot be learned from, such as one whose answer was cut
        to nothing.
        """
        ...

    def losses(self, logits: Tensor, batch: Batch, *, num_jobs: int = 1) -> tuple[Tensor, Tensor]:
        """Return the loss of each job, (jobs,), with gradients, and of each example, (B,), without.

        ``logits`` is (B, C) or (B, T, V) in fp32. The rows of a batch go job by job, equally many
        of each. A job's loss is what its training minimises.
        """
        ...

    def score(self, model: Predictor, batch: Batch) -> ChunkScore:
        """Return what these examples add to an evaluation, in sums that chunks add up to."""
        ...

    def evaluation(self, scores: Iterable[ChunkScore]) -> Evaluation:
        """Return every metric from the scores of all chunks, in any order; sums are exact."""
        ...

    def groups(self, split: Split) -> IntArray | None:
        """Return the group of each example, (n,), that skew and stratified draws go by.

        None where the task knows no groups: then examples are drawn as if all were alike.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """Return what a manifest says about the data beside its size, such as its classes."""
        ...


def totals(scores: Iterable[ChunkScore]) -> tuple[float, ...]:
    """Return the sum over all chunks of each of their sums, exact and so in any order."""
    return tuple(math.fsum(column) for column in zip(*(one.sums for one in scores), strict=True))


def groups_or_none_at_all(task: Task, split: Split) -> IntArray:
    """Return the group of each example of a split, (n,), one for all where the task knows none."""
    found = task.groups(split)
    return np.zeros(len(task.data[split]), dtype=np.int64) if found is None else found
