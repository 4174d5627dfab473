"""Makes random streams by name, so that a draw in one never moves a draw in another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from numpy.random.bit_generator import ISeedSequence

from traces.canonical import canonical

NUM_AHEAD, MOST_AHEAD = 64, 1024
"""The least and the most streams of one name whose states are worked out together."""


def stream_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for the stream of this name; the same on every machine and Python."""
    return _hashed(canonical([seed, *names]))


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """Return the generator of one named stream, e.g. ``stream(0, "selection", round_number)``."""
    return np.random.default_rng(stream_seed(seed, *names))


class NumberedStreams:
    """Numbered streams have one name: ``streams[n]`` is ``stream(seed, name, n)``.

    Whoever asks for one stream after the other gets it in a tenth of the time, since the states of
    the next ones are worked out together.
    """

    def __init__(self, seed: int, name: str) -> None:
        self._start = canonical([seed, name]).removesuffix("]")
        self._first, self._states = 0, np.zeros((0, 4), dtype=np.uint64)

    def __getitem__(self, number: int) -> np.random.Generator:
        row = number - self._first
        if not 0 <= row < len(self._states):
            # The number grows with the streams in use, so that few states are computed in vain.
            ahead = min(max(NUM_AHEAD, number // 4), MOST_AHEAD)
            self._states = self._states_of(range(number, number + ahead))
            self._first, row = number, 0
        return _begun_from(self._states[row])

    def many(self, numbers: Sequence[int]) -> Iterator[np.random.Generator]:
        """Return the streams of these numbers, in their order."""
        for start in range(0, len(numbers), MOST_AHEAD):
            yield from map(_begun_from, self._states_of(numbers[start : start + MOST_AHEAD]))

    def _states_of(self, numbers: Iterable[int]) -> npt.NDArray[np.uint64]:
        return seeded_states([_hashed(f"{self._start}, {number}]") for number in numbers])


def _begun_from(words: npt.NDArray[np.uint64]) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(cast(Any, _Words(words))))


class _Words(ISeedSequence):
    """This seed sequence gives a bit generator the words that it starts from."""

    def __init__(self, words: npt.NDArray[np.uint64]) -> None:
        self._words = words

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> npt.NDArray[Any]:
        return self._words


def seeded_states(seeds: Sequence[int]) -> npt.NDArray[np.uint64]:
    """Return (n, 4): ``SeedSequence(seed).generate_state(4, uint64)`` of seeds below 2^64.

    The hash is that of O'Neill's ``seed_seq_fe128``, whose results NumPy promises never to change.
    """
    words = np.array(seeds, dtype=np.uint64)
    entropy = [words & np.uint64(0xFFFFFFFF), words >> np.uint64(32), *[np.zeros_like(words)] * 2]
    factor = 0x43B0D7E5

    def hashed(values: npt.NDArray[np.uint32], multiplier: int) -> npt.NDArray[np.uint32]:
        nonlocal factor
        values = values ^ np.uint32(factor)
        factor = factor * multiplier & 0xFFFFFFFF
        values = values * np.uint32(factor)
        return values ^ (values >> np.uint32(16))

    pool = [hashed(part.astype(np.uint32), 0x931E8875) for part in entropy]
    for source in range(4):
        for target in range(4):
            if source != target:
                other = hashed(pool[source], 0x931E8875)
                mixed = pool[target] * np.uint32(0xCA01F9DD) - other * np.uint32(0x4973F715)
                pool[target] = mixed ^ (mixed >> np.uint32(16))
    factor = 0x8B51F9DD
    halves = [hashed(pool[k % 4], 0x58F38DED).astype(np.uint64) for k in range(8)]
    pairs = zip(halves[::2], halves[1::2], strict=True)
    return np.stack([low | (high << np.uint64(32)) for low, high in pairs], axis=1)
