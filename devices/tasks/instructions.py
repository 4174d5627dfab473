"""Answers a prompt as the data does: instruction tuning, with the prompt masked out of the loss."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from devices.datasets.dataset import Examples, Split, TextDataset
from devices.tasks.task import IGNORED, Batch, Encoded, Metric, Predictor, Tokenize, totals
from devices.tasks.token_losses import TOKEN_METRICS, LearnsTokens, score_tokens, token_values
from devices.vocabulary.trainer import ChunkScore, Evaluation
from traces.arrays import IntArray

EXACT_MATCH = Metric("exact_match", "share", "higher")
ROUGE_L = Metric("rouge_l", "share", "higher")


@dataclass(frozen=True, eq=False)
class Instructions(LearnsTokens):
    """Instruction tuning learns the tokens of an answer that follow a prompt, and its end.

    The tokens of prompt and answer are made apart and joined. What is longer than the experiment
    allows is cut at its end, and has no end then. Loss is the mean over the tokens of answers
    alone, in nats. Of every test example an answer of at most ``answer_tokens`` tokens is made by
    taking the most likely token each time; it is compared with the data's, as far as that was not
    cut.
    """

    kind: ClassVar[str] = "instructions"
    columns: ClassVar[tuple[str, ...]] = ("prompt", "answer")
    optional: ClassVar[tuple[str, ...]] = ()
    metrics: ClassVar[tuple[Metric, ...]] = (*TOKEN_METRICS, EXACT_MATCH, ROUGE_L)

    data: TextDataset
    template: str = "{prompt}\n"
    answer_tokens: int = 32
    label_smoothing: float = 0.0  # share of each target that is spread evenly over all tokens

    @classmethod
    def of(cls, data: TextDataset) -> Instructions:
        """Make the task of a data set with prompts and answers."""
        return cls(data)

    def encode(self, split: Split, tokenize: Tokenize) -> Encoded:
        examples = self.data[split]
        rows = tokenize.answered(examples["prompt"], examples["answer"], template=self.template)
        joined = [
            join_answer(prompt, answer, tokenize.max_length, examples=examples, place=place)
            for place, (prompt, answer) in enumerate(rows)
        ]
        return Encoded([ids for ids, _ in joined], [targets for _, targets in joined])

    def score(self, model: Predictor, batch: Batch) -> ChunkScore:
        of_tokens = score_tokens(model.logits(batch), batch)
        if not self.answer_tokens:
            return of_tokens
        prompts, wanted = zip(*map(_parted, *_arrays(batch)), strict=True)
        answers = model.answers(prompts, self.answer_tokens)
        references = [model.text(ids) for ids in wanted]
        pairs = list(zip(answers, references, strict=True))
        matches = [float(_plain(answer) == _plain(wanted)) for answer, wanted in pairs]
        rouge = [rouge_l(answer, wanted) for answer, wanted in pairs]
        return ChunkScore((*of_tokens.sums, len(pairs), sum(matches), sum(rouge)))

    def evaluation(self, scores: Iterable[ChunkScore]) -> Evaluation:
        sums = totals(scores)
        values = token_values(sums)
        if self.answer_tokens:
            num_answers, matched, rouge = sums[3:]
            values |= {EXACT_MATCH.name: matched / num_answers, ROUGE_L.name: rouge / num_answers}
        return Evaluation(values)

    def facts(self) -> dict[str, Any]:
        return {}


def join_answer(
    prompt: IntArray, answer: IntArray, max_length: int, *, examples: Examples, place: int
) -> tuple[IntArray, IntArray]:
    """Return the tokens of a prompt and its answer, cut to ``max_length``, and their targets.

    A target is the next token where that is of the answer. Raises ValueError where the prompt
    leaves no room for a token of the answer, or is none itself.
    """
    if not 0 < len(prompt) < max_length:
        raise examples.error(
            place,
            f"a prompt must leave room for its answer in the {max_length} tokens of "
            f"task.max_length, got {len(prompt)} tokens of the prompt "
            f"{examples['prompt'][place]!r:.60}; raise task.max_length or leave the example out",
        )
    ids = np.concatenate([prompt, answer])[:max_length]
    targets = np.append(ids[1:], IGNORED)
    targets[: len(prompt) - 1] = IGNORED
    return ids, targets


def _arrays(batch: Batch) -> tuple[IntArray, IntArray]:
    return batch.input_ids.cpu().numpy(), batch.targets.cpu().numpy()


def _parted(ids: IntArray, targets: IntArray) -> tuple[IntArray, IntArray]:
    """Return the tokens of the prompt, and those of the answer, of one example of a batch."""
    (of_answer,) = np.nonzero(targets != IGNORED)
    return ids[: of_answer[0] + 1], targets[of_answer]


def _plain(text: str) -> str:
    """Return a text with single spaces and without upper case."""
    return " ".join(text.casefold().split())


def rouge_l(answer: str, reference: str) -> float:
    """Return ROUGE-L of an answer: the F1 of the longest common subsequence of words, in [0, 1].

    Words are runs of letters and digits, without upper case and without stemming, as in the package
    ``rouge-score``. Source: Lin 2004, "ROUGE: a package for automatic evaluation of summaries". 1
    for two texts without a word that are alike.
    """
    one, other = (re.findall(r"[^\W_]+", text.lower()) for text in (answer, reference))
    if not one and not other:
        return float(_plain(answer) == _plain(reference))
    return 2 * _common(one, other) / (len(one) + len(other))


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence."""
    # best[j] is the length for the words of ``one`` so far and the first j words of ``other``.
    best = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for place, against in enumerate(other, start=1):
            longest = diagonal + 1 if word == against else max(best[place], best[place - 1])
            diagonal, best[place] = best[place], longest
    return best[-1]
