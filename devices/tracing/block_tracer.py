"""Runs one block of a model, and what is around it, to learn what they cost.

What runs is this project's own training, on fake tensors: shapes without numbers, which take no
memory and next to no time. Only frozen weights and packed activations are shadows, whose conversion
takes the room that the real one takes.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._pytree import tree_unflatten

from devices.cost.blocks import Batch
from devices.cost.traced import BlockTrace, FrameTrace, Keeping, Pattern
from devices.models.spec import ModelSpec
from devices.tracing.meta_model import NUM_BLOCKS, PRIMES, Call, Stage, texts
from devices.tracing.operator_trace import Tape, pass_trace, shadow_packed
from devices.training.activations import BlockPacker, PackableBlock, recomputed
from devices.training.files import quiet


class BlockTracer:
    """Traces of one model, each made once.

    Raises ValueError for a model of more linear layers a block than it can tell apart.
    """

    def __init__(
        self, spec: ModelSpec, config: Mapping[str, Any], *, lora_dropout: float = 0.0
    ) -> None:
        if len(spec.linears) > len(PRIMES):
            raise ValueError(
                f"a block must have at most {len(PRIMES)} linear layers for its costs to be "
                f"traced, got {len(spec.linears)} (model {spec.name})"
            )
        self._spec = replace(spec, num_blocks=NUM_BLOCKS)
        self._config = config
        self._lora_dropout = lora_dropout
        self._fake = FakeTensorMode()
        self.block = lru_cache(maxsize=1024)(self._block)
        self.frame = lru_cache(maxsize=256)(self._frame)
        self._stage = lru_cache(maxsize=2)(self._built_stage)
        self._call = lru_cache(maxsize=64)(self._noted_call)

    def _built_stage(self, bits: int) -> Stage:
        with quiet():
            stage = Stage(self._spec, self._config, lora_dropout=self._lora_dropout)
        with self._fake:
            stage.fill(torch.float32 if bits == 32 else torch.bfloat16)
        return stage

    def _noted_call(self, batch: Batch) -> Call:
        with self._fake:
            return self._stage(batch.bits).call(batch)

    def _block(self, pattern: Pattern, batch: Batch) -> BlockTrace:
        stage, call = self._stage(batch.bits), self._call(batch)
        with self._fake, _uncollected():
            stage.install(pattern.layers, trains_a=pattern.trains_a)
            return _block_trace(stage, call, pattern, batch)

    def _frame(self, batch: Batch, *, crosses: bool) -> FrameTrace:
        stage, call = self._stage(batch.bits), self._call(batch)
        with self._fake, _uncollected():
            return _frame_trace(stage, call, batch, crosses=crosses)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the collector of cycles: when it runs must not decide what lives when."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Source(torch.autograd.Function):
    """Hidden states from nowhere; their gradient goes where they came from."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, tape: Tape, shape: Sequence[int]) -> Tensor:
        return tape.made(shape, leaf.dtype, "plain")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        return None, None, None


class _Sink(torch.autograd.Function):
    """Takes hidden states, and in the backward pass makes their gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, tape: Tape) -> Tensor:
        ctx.tape, ctx.shape, ctx.dtype = tape, hidden.shape, hidden.dtype
        return tape.made((), hidden.dtype, "plain")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.tape.made(ctx.shape, ctx.dtype, "plain"), None


class _Arguments:
    """What a block is called with besides hidden states, in storages of its own."""

    def __init__(self, call: Call) -> None:
        self._storages: dict[int, Tensor] = {}
        self._call = call
        self._leaves = [self._like(leaf) for leaf in call.leaves]

    def _like(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        storage = leaf.untyped_storage()
        if storage._cdata not in self._storages:
            elements = storage.nbytes() // leaf.element_size()
            self._storages[storage._cdata] = torch.empty(elements, dtype=leaf.dtype)
        whole = self._storages[storage._cdata]
        return whole.as_strided(leaf.shape, leaf.stride(), leaf.storage_offset())

    @property
    def storages(self) -> list[Tensor]:
        """Each once."""
        return list(self._storages.values())

    def given_to(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """What the block makes of the hidden states. The arguments are gone then, but for those
        that the block keeps."""
        args, kwargs = tree_unflatten(self._leaves, self._call.structure)
        self._leaves.clear()
        self._storages.clear()
        output = block(hidden, *args, **kwargs)
        hidden_out: Tensor = output[0] if self._call.returns_tuple else output
        return hidden_out


def _block_trace(stage: Stage, call: Call, pattern: Pattern, batch: Batch) -> BlockTrace:
    """One run of the first block, forward and backward."""
    arguments = _Arguments(call)
    tape = Tape(stage.ranks, stage.resident(), arguments.storages)
    leaf = torch.zeros((), dtype=stage.dtype, requires_grad=pattern.position == "above")
    shape = (batch.size, batch.length, stage.spec.hidden)
    with tape, stage.taped(tape), _kept(stage.parts, tape, pattern.keeping):
        hidden = _Source.apply(leaf, tape, shape)  # type: ignore[no-untyped-call]
        output = arguments.given_to(stage.parts.block, hidden)
        del hidden
        held, held_arguments = tape.live - {tape.index(output)}, frozenset(tape.arguments)
        forward = tape.cut()
        if pattern.position != "below":
            end = _Sink.apply(output, tape)  # type: ignore[no-untyped-call]
            del output
            end.backward()
    tensors = tuple(tape.tensors)
    return BlockTrace(
        tensors,
        forward=pass_trace(forward, len(tensors)),
        backward=pass_trace(tape.cut(), len(tensors)),
        held=tuple(sorted(held)),
        held_arguments=held_arguments if pattern.position != "below" else frozenset(),
    )


@contextmanager
def _kept(parts: PackableBlock, tape: Tape, keeping: Keeping) -> Iterator[None]:
    """Let the block save as planned."""
    if keeping == "recomputed":
        with recomputed([parts.block]):
            yield
        return
    packer = BlockPacker(parts, 4, partial(shadow_packed, tape))
    handles = packer.attach() if keeping == "packed" else []
    yield
    for handle in handles:
        handle.remove()


def _frame_trace(stage: Stage, call: Call, batch: Batch, *, crosses: bool) -> FrameTrace:
    """One run of the whole model with blocks that pass hidden states on."""
    given = texts(batch)
    tape = Tape((), [*stage.resident(), *given], ())
    leaf = torch.zeros((), dtype=stage.dtype, requires_grad=crosses)
    shape = (batch.size, batch.length, stage.spec.hidden)
    beside: list[int] = []

    def passing(hidden: Tensor, *_: Any, **__: Any) -> Any:
        beside.append(tape.live_bytes - hidden.untyped_storage().nbytes())
        passed = _Source.apply(leaf, tape, shape)  # type: ignore[no-untyped-call]
        return (passed, *[None] * 2) if call.returns_tuple else passed

    with tape, _forwards(stage.blocks, passing):
        logits = stage.forward(*given)
        loss = functional.cross_entropy(logits, tape.made((batch.size,), torch.long, "plain"))
        head_bytes, forward_flops = tape.live_bytes, tape.cut().fixed_flops
        loss.backward()  # type: ignore[no-untyped-call]
    storages = {leaf.untyped_storage()._cdata: leaf for leaf in call.tensors}
    return FrameTrace(
        forward_flops=forward_flops,
        backward_flops=tape.cut().fixed_flops,
        argument_bytes=tuple(leaf.untyped_storage().nbytes() for leaf in storages.values()),
        first_bytes=beside[0],
        later_bytes=beside[1],
        head_bytes=head_bytes,
    )


@contextmanager
def _forwards(blocks: Sequence[nn.Module], forward: Any) -> Iterator[None]:
    """Let blocks do something else."""
    for block in blocks:
        block.forward = forward
    yield
    for block in blocks:
        del block.forward
