"""Chooses among the answers to a prompt by their likelihood, as BoolQ, ARC and MMLU are scored."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from devices.datasets.dataset import SPLITS, Examples, Split, TextDataset
from devices.tasks.classification import ACCURACY, LOSS
from devices.tasks.instructions import join_answer
from devices.tasks.task import Batch, Encoded, Metric, Offer, Predictor, Tokenize, totals
from devices.tasks.token_losses import LearnsTokens, score_tokens
from devices.vocabulary.trainer import ChunkScore, Evaluation
from traces.arrays import IntArray

MAX_CHOICES = 100


@dataclass(frozen=True, eq=False)
class Choice(LearnsTokens):
    """A choice learns the right answer to a prompt, and takes the likeliest of those on offer.

    It is trained as a language model on the tokens of the right answer, the prompt masked out of
    the loss. For a test example it takes the answer whose tokens, the end included, have the
    largest sum of log-probabilities after the prompt. A prompt that is too long beside its
    answer is cut at its beginning. Loss is the mean over the tokens of right answers, in nats.
    """

    kind: ClassVar[str] = "choice"
    columns: ClassVar[tuple[str, ...]] = ("prompt", "choices", "answer")
    optional: ClassVar[tuple[str, ...]] = ()
    metrics: ClassVar[tuple[Metric, ...]] = (ACCURACY, LOSS)

    data: TextDataset
    offered: Mapping[Split, Sequence[tuple[str, ...]]]  # the choices of each example
    right: Mapping[Split, IntArray]  # (n,): the index of the right one among them
    template: str = "{prompt}\n"
    label_smoothing: float = 0.0  # share of each target that is spread evenly over all tokens
    scored: tuple[Split, ...] = ("test",)  # splits whose wrong answers are encoded too

    @classmethod
    def of(cls, data: TextDataset) -> Choice:
        """Read the choices of a data set, and which of them is right.

        Raises ValueError for choices that are no JSON list of different texts, or an answer that is
        neither one of them nor the place of one, counted from 0.
        """
        offered: dict[Split, Sequence[tuple[str, ...]]] = {}
        right: dict[Split, IntArray] = {}
        for split in SPLITS:
            examples = data[split]
            offered[split] = [_choices(examples, k) for k in range(len(examples))]
            places = [_right(examples, k, each) for k, each in enumerate(offered[split])]
            right[split] = np.array(places, dtype=np.int64)
        return cls(data, offered, right)

    def encode(self, split: Split, tokenize: Tokenize) -> Encoded:
        examples, right = self.data[split], self.right[split].tolist()
        # Training needs the right answer alone; scoring compares all of them.
        used = [
            offered if split in self.scored else offered[place : place + 1]
            for offered, place in zip(self.offered[split], right, strict=True)
        ]
        owners = [place for place, answers in enumerate(used) for _ in answers]
        rows = tokenize.answered(
            [examples["prompt"][place] for place in owners],
            [answer for answers in used for answer in answers],
            template=self.template,
        )
        joined = [
            _joined(*row, tokenize.max_length, examples=examples, place=place)
            for place, row in zip(owners, rows, strict=True)
        ]
        ends = np.cumsum([len(answers) for answers in used]).tolist()
        groups = [
            tuple(joined[end - len(answers) : end]) for end, answers in zip(ends, used, strict=True)
        ]
        if split not in self.scored:
            return Encoded([ids for ((ids, _),) in groups], [targets for ((_, targets),) in groups])
        offers = [Offer(group, place) for group, place in zip(groups, right, strict=True)]
        ids, targets = zip(*(offer.answers[offer.right] for offer in offers), strict=True)
        return Encoded(ids, targets, offers=offers)

    def score(self, model: Predictor, batch: Batch) -> ChunkScore:
        num_tokens, _, loss_sum = score_tokens(model.logits(batch), batch).sums
        found = model.log_likelihoods([row for offer in batch.offers for row in offer.answers])
        likelihoods = iter(found)
        is_right = [
            int(np.argmax([next(likelihoods) for _ in offer.answers])) == offer.right
            for offer in batch.offers
        ]
        return ChunkScore((num_tokens, loss_sum, len(is_right), sum(is_right)))

    def evaluation(self, scores: Iterable[ChunkScore]) -> Evaluation:
        num_tokens, loss_sum, num_examples, num_right = totals(scores)
        values = {ACCURACY.name: num_right / num_examples, LOSS.name: loss_sum / num_tokens}
        return Evaluation(values)

    def facts(self) -> dict[str, Any]:
        chance = np.mean([1 / len(offered) for offered in self.offered["test"]])
        return {"chance": float(chance)}  # the accuracy of guessing


def _joined(
    prompt: IntArray, answer: IntArray, max_length: int, *, examples: Examples, place: int
) -> tuple[IntArray, IntArray]:
    """Return tokens and targets, the prompt cut at its beginning so that the whole answer fits."""
    if len(answer) >= max_length:
        raise examples.error(
            place,
            f"an answer must leave room for a token of its prompt in the {max_length} tokens of "
            f"task.max_length, got {len(answer)}; raise task.max_length or leave the example out",
        )
    kept = prompt[-(max_length - len(answer)) :]
    return join_answer(kept, answer, max_length, examples=examples, place=place)


def _choices(examples: Examples, place: int) -> tuple[str, ...]:
    text = examples["choices"][place]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if (
        not isinstance(found, list)
        or not 2 <= len(found) <= MAX_CHOICES
        or not all(isinstance(each, str) and each.strip() for each in found)
        or len(set(found)) < len(found)
    ):
        raise examples.error(
            place,
            f"choices must be a JSON list of 2 to {MAX_CHOICES} different texts, got {text!r:.60}",
        )
    return tuple(found)


def _right(examples: Examples, place: int, offered: Sequence[str]) -> int:
    answer = examples["answer"][place]
    if answer in offered:
        return offered.index(answer)
    if answer.isdecimal() and len(answer) < 4 and int(answer) < len(offered):
        return int(answer)
    raise examples.error(
        place,
        f"answer must be one of the choices, or the place of one from 0 to {len(offered) - 1}, got "
        f"{answer!r:.60}",
    )
