"""Packs what a block saves for its backward pass to 8 or 4 bits, or computes it again."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from torch.utils.hooks import RemovableHandle

from devices.training.attention_scores import ScoreWatch
from devices.training.codes import SMALLEST_STEP, UNIFORM_4, decode, join_nibbles, slices
from devices.training.weights import QuantizedLinear
from devices.vocabulary.number_formats import GROUP, SMALLEST_PACKED


@dataclass(frozen=True, eq=False)
class PackedActivation:
    """A packed activation is one saved tensor: codes, and fp16 scale and zero of each group."""

    codes: Tensor  # (groups, 64) bytes, or (groups, 32) of two codes each
    scale: Tensor  # (groups, 1)
    zero: Tensor  # (groups, 1)
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]  # groups are 64 neighbours in memory, not along an axis of the view

    @property
    def stored_bytes(self) -> int:
        """Return the number of bytes that are held until the backward pass."""
        return self.codes.nbytes + self.scale.nbytes + self.zero.nbytes

    def unpack(self) -> Tensor:
        """Return the tensor, to within one step of each group's scale."""
        values = decode(self.codes, self.scale, self.zero, levels=UNIFORM_4, dtype=self.dtype)
        return values.as_strided(self.shape, self.stride)


class RoundingNoise:
    """Rounding noise gives uniform numbers that decide whether a code is rounded up.

    They are drawn once a job, if it packs anything, and each tensor reads them from a place of its
    own: drawing them anew would take longer than all the rest of packing.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed, self._device = seed, device
        self._rng = np.random.default_rng(seed)

    @cached_property
    def _pool(self) -> Tensor:
        generator = torch.Generator(self._device).manual_seed(self._seed)
        return torch.rand(2**20, generator=generator, device=self._device)

    def like(self, groups: Tensor) -> Tensor:
        """Return numbers in [0, 1), (groups, 64), for the values of ``groups``."""
        num_drawn = groups.numel()
        start = int(self._rng.integers(len(self._pool) - num_drawn + 1))
        return self._pool[start : start + num_drawn].view(groups.shape)


def pack_activation(tensor: Tensor, bits: int, noise: RoundingNoise) -> PackedActivation | None:
    """Quantize by groups of 64 between their extremes, rounding up or down at random.

    The expected value of what comes back is what went in. None where the tensor is not finite in
    fp16: a mask of -inf must stay exact, or gradients turn into NaN.
    """
    tensor = tensor if _is_dense(tensor) else tensor.contiguous()
    values = tensor.as_strided((tensor.numel(),), (1,))
    num_groups, tail = -(-len(values) // GROUP), values[len(values) // GROUP * GROUP :]
    groups = values[: len(values) - len(tail)].view(-1, GROUP)
    codes = tensor.new_empty(num_groups, GROUP * bits // 8, dtype=torch.uint8)
    scale, zero = (tensor.new_empty(num_groups, 1, dtype=torch.float16) for _ in range(2))
    parts = [(part, groups[part]) for part in slices(len(groups))]
    if len(tail):  # the last group is padded with its last element
        last = torch.cat([tail, tail[-1:].expand(GROUP - len(tail))])
        parts.append((slice(num_groups - 1, num_groups), last[None]))
    for part, some in parts:
        packed = _pack_groups(some.float(), bits, noise)
        if packed is None:
            return None
        codes[part], scale[part], zero[part] = packed
    return PackedActivation(codes, scale, zero, tensor.dtype, tensor.shape, tensor.stride())


def _pack_groups(
    groups: Tensor, bits: int, noise: RoundingNoise
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return codes, scale and zero of each group, (groups, 64) in fp32; None if not finite.

    Extremes of bf16 would take five times as long.
    """
    top = 2**bits - 1
    low = groups.amin(1, keepdim=True)
    scale, zero = (groups.amax(1, keepdim=True) - low).div_(top).half(), low.half()
    # Codes are computed with the rounded scale and zero, which unpacking uses too.
    step, origin = scale.float(), zero.float()
    if not math.isfinite((step.sum() + origin.sum()).item()):
        return None
    per_step = step.clamp_min_(SMALLEST_STEP).reciprocal_()
    steps = (groups - origin).mul_(per_step).add_(noise.like(groups)).clamp_(0, top)
    codes = steps.to(torch.int32).to(torch.uint8)  # two casts are faster than one
    return (join_nibbles(codes) if bits == 4 else codes), scale, zero


@dataclass(frozen=True, eq=False)
class PackableBlock:
    """A packable block is a block with the layers before and after its attention."""

    block: nn.Module
    value: nn.Module  # the last of the three projections before attention
    output: nn.Module  # the projection of attention's result
    num_heads: int
    num_kv_heads: int
    head_size: int


@contextmanager
def packed_activations(
    blocks: Sequence[PackableBlock], bits: Sequence[int], noise: RoundingNoise
) -> Iterator[None]:
    """Pack what each block saves to its number of bits; 32 leaves a block as it is.

    At 0 bits a block saves its input alone, and the backward pass first computes it again.

    Never packed: parameters and frozen weights, integers and booleans, tensors of fewer than 1,024
    elements, and within attention whatever is neither query, key, value, score nor result: flash
    attention's log-sum-exp, masks, rotary tables. Query, key and value never go below 8 bits: noise
    in them is raised to the exponential.
    """
    planned = list(zip(blocks, bits, strict=True))
    pack = partial(pack_activation, noise=noise)
    packers = [BlockPacker(block, bits, pack) for block, bits in planned if 0 < bits < 32]
    handles = [handle for packer in packers for handle in packer.attach()]
    try:
        with recomputed([parts.block for parts, bits in planned if bits == 0]):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def recomputed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Let each block save its input alone, and run forward again in the backward pass."""
    for block in blocks:
        block.forward = partial(_recomputed, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # removes the instance's attribute, so that the class's method holds


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run one block so that it is computed again in its backward pass.

    Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016). Recomputing runs
    the whole block, so that it costs as much as its forward pass.
    """
    with set_checkpoint_early_stop(False):
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


class _Packed(NamedTuple):
    """A packed tensor comes with an identity by which a second save of the same one is recognised.

    The storage is referenced weakly: an operator that saves the tensor again keeps it alive until
    then, and a dead reference tells another storage at the same address apart.
    """

    storage: weakref.ref[torch.UntypedStorage]
    identity: tuple[Any, ...]
    activation: Any


class BlockPacker:
    """A block packer has the hooks that pack what one block saves, and their state.

    ``pack`` makes a PackedActivation, or what stands for one, of a tensor and a number of bits; or
    None where the tensor must stay as it is.
    """

    def __init__(
        self, parts: PackableBlock, bits: int, pack: Callable[[Tensor, int], Any | None]
    ) -> None:
        self._parts = parts
        self._bits = bits
        self._pack_tensor = pack
        self._hooks = saved_tensors_hooks(self._pack, _unpack)
        self._tokens = self._length = self._num_projections = 0
        self._is_attending = False
        self._resident = {t.untyped_storage()._cdata for t in _resident(parts.block)}
        self._watch: ScoreWatch | None = None
        self._packed: list[_Packed] = []

    def attach(self) -> list[RemovableHandle]:
        """Hook into the block, and return the handles that remove the hooks."""
        parts = self._parts
        return [
            parts.block.register_forward_pre_hook(self._enter),
            parts.value.register_forward_hook(self._begin_attention),
            parts.output.register_forward_pre_hook(self._end_attention),
            parts.block.register_forward_hook(self._leave, always_call=True),
        ]

    def _enter(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        batch, self._length = args[0].shape[:2]
        self._tokens, self._num_projections = batch * self._length, 0
        self._is_attending = False
        if self._length == self._parts.head_size:
            self._watch = ScoreWatch()
            self._watch.__enter__()  # type: ignore[no-untyped-call]
        self._hooks.__enter__()

    def _leave(self, *_: object) -> None:
        self._hooks.__exit__()
        if self._watch:
            self._watch.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._watch = None
        self._packed.clear()

    def _begin_attention(self, *_: object) -> None:
        self._is_attending = True

    def _end_attention(self, *_: object) -> None:
        self._is_attending = False

    def _pack(self, tensor: Tensor) -> Any:
        bits = self._bits_of(tensor)
        if bits == 32:
            return tensor
        identity = (_identity(tensor), bits)
        for known in self._packed:
            if known.identity == identity and known.storage() is not None and _is_dense(tensor):
                return replace(known.activation, shape=tensor.shape, stride=tensor.stride())
        fresh = self._pack_tensor(tensor, bits)
        if fresh is None:
            return tensor
        if _is_dense(tensor):
            storage = weakref.ref(tensor.untyped_storage())
            self._packed.append(_Packed(storage, identity, fresh))
        return fresh

    def _bits_of(self, tensor: Tensor) -> int:
        elements = tensor.numel()
        if not tensor.is_floating_point() or elements < SMALLEST_PACKED:
            return 32
        if tensor.untyped_storage()._cdata in self._resident:
            return 32
        return self._attention_bits(tensor.shape) if self._is_attending else self._bits

    def _attention_bits(self, shape: torch.Size) -> int:
        """Return the bits at which to save a tensor of attention, told by its shape.

        The shape says whether it is a projection, the scores or the result. Any other tensor stays
        as it is, at 32 bits.
        """
        elements = shape.numel()
        parts, head_elements = self._parts, self._tokens * self._parts.head_size
        num_scores = self._tokens * self._length * parts.num_heads
        if self._watch.next_is_score() if self._watch else elements == num_scores:
            return self._bits
        if self._parts.head_size not in shape[-2:]:
            return 32
        if elements not in (head_elements * parts.num_heads, head_elements * parts.num_kv_heads):
            return 32
        self._num_projections += 1
        is_result = self._num_projections > 3  # flash attention saves its result after q, k and v
        return self._bits if is_result else max(self._bits, 8)


def _resident(module: nn.Module) -> Iterator[Tensor]:
    """Give all tensors that a module holds in any case: parameters, buffers, frozen weights."""
    yield from module.parameters()
    yield from module.buffers()
    for layer in module.modules():
        if isinstance(layer, QuantizedLinear):
            yield from layer.packed.casts


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Return a key that is equal for two views of the same memory, if both are of all of it."""
    storage = tensor.untyped_storage()
    return storage._cdata, tensor.storage_offset(), tensor.numel(), tensor.dtype, tensor._version


def _is_dense(tensor: Tensor) -> bool:
    """Return True if the elements are neighbours in memory, in some order of the axes."""
    neighbours = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != neighbours:
            return False
        neighbours *= size
    return True


def _unpack(saved: Any) -> Tensor:
    return saved if isinstance(saved, Tensor) else saved.unpack()
