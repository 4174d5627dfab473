"""Named random streams: a draw in one never moves a draw in another."""

from __future__ import annotations

import hashlib

import numpy as np

from traces.canonical import canonical


def stream_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for the stream of this name; the same on every machine and Python."""
    text = canonical([seed, *names])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """Return the generator of one named stream, e.g. ``stream(0, "selection", round_number)``."""
    return np.random.default_rng(stream_seed(seed, *names))
