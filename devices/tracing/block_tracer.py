"""Runs one block of a model, and the model without its blocks, to learn what they cost.

It runs this project's own training on fake tensors: shapes without numbers, which take no memory
and little time. Frozen weights and packed activations are replaced by stand-ins whose conversion
takes as much memory as the real one.
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

from devices.cost.block_trace import BlockPattern, BlockTrace, FrameTrace, Keeping
from devices.cost.blocks import BatchShape
from devices.models.spec import ModelSpec
from devices.tasks.regression import squared_errors
from devices.tasks.token_losses import token_losses
from devices.tracing.meta_model import NUM_BLOCKS, PRIMES, BlockCall, MetaModel, texts
from devices.tracing.operator_trace import OperatorTrace, TracePart, pass_trace, shadow_packed
from devices.training.activations import BlockPacker, PackableBlock, recomputed
from devices.training.files import quiet


class BlockTracer:
    """A block tracer makes the traces of one model, each once.

    Raises ValueError for a model with more linear layers in a block than it can tell apart.
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
        self._model = lru_cache(maxsize=2)(self._built_model)
        self._call = lru_cache(maxsize=64)(self._noted_call)

    def _built_model(self, bits: int) -> MetaModel:
        with quiet():
            model = MetaModel(self._spec, self._config, lora_dropout=self._lora_dropout)
        with self._fake:
            model.fill(torch.float32 if bits == 32 else torch.bfloat16)
        return model

    def _noted_call(self, batch: BatchShape) -> BlockCall:
        with self._fake:
            return self._model(batch.bits).call(batch)

    def _block(self, pattern: BlockPattern, batch: BatchShape) -> BlockTrace:
        model, call = self._model(batch.bits), self._call(batch)
        with self._fake, _uncollected():
            model.install(pattern.layers, trained_factors=pattern.trained_factors)
            return _block_trace(model, call, pattern, batch)

    def _frame(self, batch: BatchShape, *, crosses: bool) -> FrameTrace:
        model, call = self._model(batch.bits), self._call(batch)
        with self._fake, _uncollected():
            return _frame_trace(model, call, batch, crosses=crosses)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Turn the collector of reference cycles off, since its runs would change what lives when."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Source(torch.autograd.Function):
    """This function makes the hidden states that enter a block, and drops their gradient."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, trace: OperatorTrace, shape: Sequence[int]) -> Tensor:
        return trace.made(shape, leaf.dtype, "plain")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        return None, None, None


class _Sink(torch.autograd.Function):
    """This function ends a block's forward pass, and makes the gradient of its output."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, trace: OperatorTrace) -> Tensor:
        ctx.trace, ctx.shape, ctx.dtype = trace, hidden.shape, hidden.dtype
        return trace.made((), hidden.dtype, "plain")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.trace.made(ctx.shape, ctx.dtype, "plain"), None


class _Arguments:
    """Arguments hold copies of a block's arguments besides the hidden states, to be traced."""

    def __init__(self, call: BlockCall) -> None:
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
        """Return the storages of the arguments, each once."""
        return list(self._storages.values())

    def given_to(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Call a block with hidden states and the arguments, and return its hidden states.

        Afterwards only the arguments that the block keeps still live.
        """
        args, kwargs = tree_unflatten(self._leaves, self._call.structure)
        self._leaves.clear()
        self._storages.clear()
        output = block(hidden, *args, **kwargs)
        hidden_out: Tensor = output[0] if self._call.returns_tuple else output
        return hidden_out


def _block_trace(
    model: MetaModel, call: BlockCall, pattern: BlockPattern, batch: BatchShape
) -> BlockTrace:
    """Return the trace of one run of the first block, forward and backward."""
    arguments = _Arguments(call)
    trace = OperatorTrace(model.ranks, model.resident(), arguments.storages)
    leaf = torch.zeros((), dtype=model.dtype, requires_grad=pattern.position == "above")
    shape = (batch.size, batch.length, model.spec.hidden)
    with trace, model.traced(trace), _kept(model.parts, trace, pattern.keeping):
        hidden = _Source.apply(leaf, trace, shape)  # type: ignore[no-untyped-call]
        output = arguments.given_to(model.parts.block, hidden)
        del hidden
        held, held_arguments = trace.live - {trace.index(output)}, frozenset(trace.arguments)
        forward = trace.cut()
        if pattern.position != "below":
            end = _Sink.apply(output, trace)  # type: ignore[no-untyped-call]
            del output
            end.backward()
    tensors = tuple(trace.tensors)
    return BlockTrace(
        tensors,
        forward=pass_trace(forward, len(tensors)),
        backward=pass_trace(trace.cut(), len(tensors)),
        held=tuple(sorted(held)),
        held_arguments=held_arguments if pattern.position != "below" else frozenset(),
    )


@contextmanager
def _kept(parts: PackableBlock, trace: OperatorTrace, keeping: Keeping) -> Iterator[None]:
    """Make the block keep its saved tensors in one of the three ways."""
    if keeping == "recomputed":
        with recomputed([parts.block]):
            yield
        return
    packer = BlockPacker(parts, 4, partial(shadow_packed, trace))
    handles = packer.attach() if keeping == "packed" else []
    yield
    for handle in handles:
        handle.remove()


def _frame_trace(
    model: MetaModel, call: BlockCall, batch: BatchShape, *, crosses: bool
) -> FrameTrace:
    """Return the trace of one run of the model, whose blocks only pass hidden states on."""
    given = texts(batch)
    trace = OperatorTrace((), [*model.resident(), *given], ())
    leaf = torch.zeros((), dtype=model.dtype, requires_grad=crosses)
    shape = (batch.size, batch.length, model.spec.hidden)
    beside: list[int] = []
    parts: list[TracePart] = []

    def passing(hidden: Tensor, *_: Any, **__: Any) -> Any:
        parts.append(trace.cut())
        beside.append(trace.live_bytes - hidden.untyped_storage().nbytes())
        passed = _Source.apply(leaf, trace, shape)  # type: ignore[no-untyped-call]
        return (passed, *[None] * 2) if call.returns_tuple else passed

    # Rotary tables, a product before transformers 5.20 and none from then on, are not counted.
    uncounted = trace.without_work_of(model.rotary_tables)
    with trace, uncounted, _forwards(model.blocks, passing):
        losses = _losses(model, given, trace, batch)
        head_bytes, after_blocks = trace.live_bytes, trace.cut()
        if losses[0].requires_grad:
            losses[0].sum().backward()  # type: ignore[no-untyped-call]
        backward = trace.cut()
    storages = {leaf.untyped_storage()._cdata: leaf for leaf in call.tensors}
    return FrameTrace(
        forward_flops=sum(part.fixed_flops for part in (*parts, after_blocks)),
        backward_flops=backward.fixed_flops,
        argument_bytes=tuple(leaf.untyped_storage().nbytes() for leaf in storages.values()),
        first_bytes=beside[0],
        later_bytes=beside[1],
        head_bytes=head_bytes,
        head_peak_bytes=max(
            trace.bytes_of(instant)
            for part in (after_blocks, backward)
            for instant in part.instants
        ),
    )


def _losses(
    model: MetaModel, given: tuple[Tensor, Tensor], trace: OperatorTrace, batch: BatchShape
) -> tuple[Tensor, ...]:
    """Run the model and its head, and return what training keeps of the loss.

    Logits of classes stay beside their loss, as where transformers computes it; others go.
    """
    if model.spec.head.per == "token":
        targets = trace.made((batch.size, batch.length), torch.long, "plain")
        return token_losses(model.forward(*given), targets)
    if model.spec.head.loss == "squared_error":
        targets = trace.made((batch.size,), torch.float32, "plain")
        return squared_errors(model.forward(*given), targets)
    logits = model.forward(*given)
    targets = trace.made((batch.size,), torch.long, "plain")
    return functional.cross_entropy(logits, targets), logits


@contextmanager
def _forwards(blocks: Sequence[nn.Module], forward: Any) -> Iterator[None]:
    """Replace the forward pass of blocks for a while."""
    for block in blocks:
        block.forward = forward
    yield
    for block in blocks:
        del block.forward
