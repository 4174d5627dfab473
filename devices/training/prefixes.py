"""Keeps what the frozen blocks give for the test examples from one evaluation to the next.

Blocks whose adapters and weights are those of the last evaluation give the same numbers for the
same examples. So their output is kept, and the blocks above it begin from there: what comes out is
the same to the bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from devices.training.model import AdaptedModel
from devices.vocabulary.plan import Adapter, Factors

MAX_KEPT_BYTES = 2**28
"""The memory that a process spends on what it keeps."""

BlockDigests = tuple[str, ...]
"""The SHA-256 of each block's factors, and of what was merged into its weights."""


class _Kept(NamedTuple):
    """A kept prefix is the output of the blocks ``below``, for one chunk of examples."""

    hidden: Tensor  # (B, T, h)
    below: BlockDigests
    is_tuple: bool  # True if a block returns its hidden states in a tuple


@dataclass(eq=False)
class KeptPrefixes:
    """Kept prefixes are the outputs of frozen blocks on test examples, by number of the chunk."""

    model: AdaptedModel
    max_bytes: int = MAX_KEPT_BYTES

    def __post_init__(self) -> None:
        self._kept: dict[int, _Kept] = {}
        self._last: dict[int, BlockDigests] = {}
        self._digests: tuple[str, BlockDigests] = ("", ())

    @contextmanager
    def reused(self, chunk: int, adapter: Adapter) -> Iterator[None]:
        """Let one pass over a chunk begin above the blocks that are as they were.

        Where nothing that fits is kept, what enters the lowest block that has changed since the
        chunk's last pass is kept for the next one.
        """
        now, last = self._of_blocks(adapter), self._last.get(chunk, ())
        self._last[chunk] = now
        kept = self._kept.get(chunk)
        if kept and now[: len(kept.below)] == kept.below:
            with _skipping([parts.block for parts in self.model.blocks], kept):
                yield
            return
        self._kept.pop(chunk, None)
        same = [one == other for one, other in zip(now, last, strict=False)]
        depth = min([*same, False].index(False), len(now) - 1)
        if not depth:
            yield
            return
        with self._keeping(chunk, now[:depth]):
            yield

    @contextmanager
    def _keeping(self, chunk: int, below: BlockDigests) -> Iterator[None]:
        """Keep what the last of the blocks ``below`` gives in the pass that follows."""

        def keep(_module: nn.Module, _given: Any, output: Any) -> None:
            is_tuple = isinstance(output, tuple)
            hidden = output[0] if is_tuple and len(output) == 1 else output
            held = sum(kept.hidden.nbytes for kept in self._kept.values())
            if isinstance(hidden, Tensor) and held + hidden.nbytes <= self.max_bytes:
                self._kept[chunk] = _Kept(hidden.detach(), below, is_tuple)

        handle = self.model.blocks[len(below) - 1].block.register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    def _of_blocks(self, adapter: Adapter) -> BlockDigests:
        if self._digests[0] != adapter.digest:  # one adapter scores many chunks in a row
            self._digests = adapter.digest, block_digests(adapter, len(self.model.blocks))
        return self._digests[1]


def block_digests(adapter: Adapter, num_blocks: int) -> BlockDigests:
    """Return the digest of all that an adapter holds of each block."""
    found = [hashlib.sha256(repr(adapter.scale).encode()) for _ in range(num_blocks)]
    for products in (adapter.factors, adapter.merged.products):
        for key, product in sorted(products.items(), key=lambda item: item[0]):
            for part in product if isinstance(product, Factors) else (product,):
                found[key.block].update(f"{key.module}{part.shape}".encode())
                found[key.block].update(np.ascontiguousarray(part).tobytes())
        for sha in found:
            sha.update(b"merged")
    return tuple(sha.hexdigest() for sha in found)


@contextmanager
def _skipping(blocks: list[nn.Module], kept: _Kept) -> Iterator[None]:
    """Let the blocks below compute nothing, and the last of them give what was kept."""
    skipped = blocks[: len(kept.below)]
    with ExitStack() as undo:
        for block in skipped:
            given = kept.hidden if block is skipped[-1] else None
            block.forward = partial(_passed_by, given, kept.is_tuple)
            undo.callback(delattr, block, "forward")  # so that the class's method holds again
        yield


def _passed_by(
    kept: Tensor | None, is_tuple: bool, hidden: Tensor, *_: Any, **__: Any
) -> Tensor | tuple[Tensor]:
    output = hidden if kept is None else kept
    return (output,) if is_tuple else output
