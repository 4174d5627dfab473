"""Turns texts into token ids as a model's own tokenizer does, and checks what it returns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from zlib import crc32

import numpy as np
from transformers import AutoTokenizer

from devices.models.catalog import ModelSource
from devices.models.directory import ModelFiles
from devices.training.files import (
    UnusableModelError,
    checked_folder,
    quiet,
    read_config,
    said_in_words,
)
from traces.arrays import IntArray

START_ID, END_ID, FIRST_WORD_ID = 1, 2, 3
"""Token ids in the vocabulary of a model that is drawn; 0 is padding."""
MANY = 2**31
"""More tokens than any text has."""
CHAT = "chat"
"""The value of ``template`` that selects the tokenizer's own chat template."""
TEXTS_AT_ONCE = 512
"""Texts that a tokenizer is given in one call: each takes kilobytes on the way."""


@dataclass(frozen=True)
class ModelTokenizer:
    """A model tokenizer is a model's own tokenizer as tasks use it; it checks every result."""

    source: ModelSource
    max_length: int  # in tokens; longer texts are cut
    vocabulary_size: int

    def __call__(
        self, texts: Sequence[str], *, ends: bool = False, cut: bool = True
    ) -> list[IntArray]:
        ids = tokenize(self.source, texts, self.max_length if cut else MANY, ends=ends)
        check_tokens(self.source, texts, ids, self.vocabulary_size)
        return ids

    def pairs(
        self, first: Sequence[str], second: Sequence[str]
    ) -> tuple[list[IntArray], list[IntArray] | None]:
        ids, types = tokenize_pairs(self.source, first, second, self.max_length)
        check_tokens(self.source, first, ids, self.vocabulary_size)
        return ids, types

    def answered(
        self, prompts: Sequence[str], answers: Sequence[str], *, template: str
    ) -> list[tuple[IntArray, IntArray]]:
        rows = tokenize_answered(self.source, prompts, answers, template)
        for texts, ids in ((prompts, [p for p, _ in rows]), (answers, [a for _, a in rows])):
            check_tokens(self.source, texts, ids, self.vocabulary_size)
        return rows

    @cached_property
    def end(self) -> int | None:
        """Return the token for the end of a text, if the tokenizer has one."""
        end: int | None = self._tokenizer.eos_token_id if self.source.files else END_ID
        return end

    def text(self, ids: IntArray) -> str:
        """Return what these token ids say, without special tokens."""
        if not self.source.files:
            return " ".join(map(str, ids.tolist()))
        with said_in_words(self.source, "whose tokenizer transformers can use"):
            return str(self._tokenizer.decode(ids.tolist(), skip_special_tokens=True))

    @cached_property
    def _tokenizer(self) -> Any:
        assert self.source.files is not None
        with _tokenizer(self.source, self.source.files) as tokenizer:
            return tokenizer


def tokenize(
    source: ModelSource, texts: Sequence[str], max_length: int, *, ends: bool = False
) -> list[IntArray]:
    """Turn each text into token ids as the model's own tokenizer does, cut after ``max_length``.

    With ``ends`` a text that is not cut ends with the tokenizer's token for the end, if it has one.
    Raises ValueError for a tokenizer that cannot be loaded or used.
    """
    if source.files is None:
        size = source.config["vocab_size"]
        rows = [[*_hashed(text, size)[: max_length - 1], END_ID] for text in texts]
        return [np.array(row, dtype=np.int64) for row in rows]
    with _tokenizer(source, source.files) as tokenizer:
        end = tokenizer.eos_token_id
        ids = _ids(tokenizer, texts, special=True, max_length=max_length)
        return [_ended(row, end)[:max_length] for row in ids] if ends else ids


def tokenize_pairs(
    source: ModelSource, first: Sequence[str], second: Sequence[str], max_length: int
) -> tuple[list[IntArray], list[IntArray] | None]:
    """Turn each pair of texts into token ids and token types, as the model's own tokenizer does.

    The longer text is cut first. Types are None unless the tokenizer tells them and the model has
    embeddings for two. Raises ValueError for a tokenizer that cannot be loaded or used.
    """
    if source.files is None:
        size = source.config["vocab_size"]
        pairs = [_hashed_pair(*pair, size, max_length) for pair in zip(first, second, strict=True)]
        rows, types = [ids for ids, _ in pairs], [types for _, types in pairs]
    else:
        with _tokenizer(source, source.files) as tokenizer:
            found = [
                tokenizer(
                    list(first[k : k + TEXTS_AT_ONCE]),
                    list(second[k : k + TEXTS_AT_ONCE]),
                    truncation=True,
                    max_length=max_length,
                    return_attention_mask=False,
                )
                for k in range(0, len(first), TEXTS_AT_ONCE)
            ]
        rows = [row for some in found for row in some["input_ids"]]
        types = [row for some in found for row in some.get("token_type_ids", ())]
    ids = [np.array(row, dtype=np.int64) for row in rows]
    if not types or getattr(read_config(source), "type_vocab_size", 0) < 2:
        return ids, None
    return ids, [np.minimum(np.array(row, dtype=np.int64), 1) for row in types]


def tokenize_answered(
    source: ModelSource, prompts: Sequence[str], answers: Sequence[str], template: str
) -> list[tuple[IntArray, IntArray]]:
    """Turn each prompt in its template, and each answer, into token ids; none of them is cut.

    An answer has the tokenizer's token for the end, if it has one. Raises ValueError for a
    tokenizer that cannot be loaded or used, or has no chat template where that is asked for.
    """
    if source.files is None:
        heads = tokenize(source, [template.replace("{prompt}", text) for text in prompts], MANY)
        tails = tokenize(source, answers, MANY)
        return [(head[:-1], tail[1:]) for head, tail in zip(heads, tails, strict=True)]
    with _tokenizer(source, source.files) as tokenizer:
        end = tokenizer.eos_token_id
        texts: list[tuple[str, str]]
        if template == CHAT:
            texts = [
                _chatted(tokenizer, *pair, source) for pair in zip(prompts, answers, strict=True)
            ]
        else:
            filled = (template.replace("{prompt}", text) for text in prompts)
            texts = list(zip(filled, answers, strict=True))
        heads = _ids(tokenizer, [head for head, _ in texts], special=template != CHAT)
        tails = _ids(tokenizer, [tail for _, tail in texts], special=False)
    # Some tokenizers add an end to every text, but a prompt is followed by its answer.
    heads = [head[:-1] if len(head) > 1 and head[-1] == end else head for head in heads]
    return [(head, _until_end(tail, end)) for head, tail in zip(heads, tails, strict=True)]


@contextmanager
def _tokenizer(source: ModelSource, files: ModelFiles) -> Iterator[Any]:
    """Load the model's own tokenizer; whatever it raises while it is used becomes a ValueError."""
    with said_in_words(source, "whose tokenizer transformers can use"), quiet():
        with checked_folder(files) as folder:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, config=read_config(source), local_files_only=True, trust_remote_code=False
            )
        yield tokenizer


def _ended(row: IntArray, end: int | None) -> IntArray:
    """Return the tokens of a text with the one for the end behind them, if there is one."""
    return row if end is None or (len(row) and row[-1] == end) else np.append(row, end)


def _chatted(tokenizer: Any, prompt: str, answer: str, source: ModelSource) -> tuple[str, str]:
    """Return a prompt in the tokenizer's chat template, and what follows where it is answered."""
    if not tokenizer.chat_template:
        raise UnusableModelError(
            f"template must be a text with {{prompt}} in it, since the tokenizer of {source.name} "
            f"has no chat template, got {CHAT}"
        )
    chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    head = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    if not whole.startswith(head):
        raise UnusableModelError(
            f"the chat template of {source.name} must put an answer behind its prompt, got "
            f"{whole!r:.80} for {head!r:.80}; give a template with {{prompt}} in it"
        )
    return head, whole.removeprefix(head)


def _ids(
    tokenizer: Any, texts: Sequence[str], *, special: bool, max_length: int | None = None
) -> list[IntArray]:
    """Return each text's token ids, with special tokens or without, cut where a length is given."""
    return [
        np.array(row, dtype=np.int64)
        for first in range(0, len(texts), TEXTS_AT_ONCE)
        for row in tokenizer(
            list(texts[first : first + TEXTS_AT_ONCE]),
            add_special_tokens=special,
            truncation=max_length is not None,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
    ]


def _until_end(row: IntArray, end: int | None) -> IntArray:
    """Return the tokens of an answer up to its end, which is added where there is none."""
    if end is None:
        return row
    (ends,) = np.nonzero(row == end)
    return row[: ends[0] + 1] if len(ends) else np.append(row, end)


def check_tokens(
    source: ModelSource, texts: Sequence[str], ids: Sequence[IntArray], vocabulary_size: int
) -> None:
    """Raise ValueError for a text without a token, or with one that the model has no embedding for.

    ``ids`` are the tokens of ``texts``, one array each.
    """
    for text, row in zip(texts, ids, strict=True):
        if not len(row):
            raise ValueError(
                f"every text must become at least one token of {source.name}, got none for "
                f"{text!r:.60}"
            )
        if not 0 <= row.min() <= row.max() < vocabulary_size:
            wrong = next(token for token in row.tolist() if not 0 <= token < vocabulary_size)
            raise ValueError(
                f"the tokens of {source.name} must be below the {vocabulary_size} that its "
                f"embedding has, got {wrong} for {text!r:.60}: tokenizer and weights are of two "
                "models"
            )


def _hashed(text: str, vocabulary_size: int) -> list[int]:
    """Return a start token, and for each word its hash: a vocabulary that needs no file."""
    words = text.lower().split()
    num_words = vocabulary_size - FIRST_WORD_ID
    return [START_ID, *(FIRST_WORD_ID + crc32(word.encode()) % num_words for word in words)]


def _hashed_pair(
    first: str, second: str, vocabulary_size: int, max_length: int
) -> tuple[list[int], list[int]]:
    """Return the tokens of a pair, an end after each text, and of each token its text, 0 or 1."""
    start, *one = _hashed(first, vocabulary_size)
    _, *other = _hashed(second, vocabulary_size)
    room = max_length - 3  # without the start and the two ends
    one = one[: max(room - room // 2, room - len(other))]
    other = other[: room - len(one)]
    ids = [start, *one, END_ID, *other, END_ID]
    return ids, [0] * (len(one) + 2) + [1] * (len(other) + 1)
