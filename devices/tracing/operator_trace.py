"""Records what operators make, compute and move while they run on fake tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from devices.cost.block_trace import PassTrace, TensorKind, TracedTensor
from traces.arrays import BoolArray, IntArray

_ATEN = torch.ops.aten
_FLASH: dict[Any, Callable[..., int]] = {  # torch has no formula for the flash attention of CPUs
    _ATEN._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, **__: sdpa_flop_count(q.shape, k.shape, v.shape)  # type: ignore[no-untyped-call]
    ),
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(  # type: ignore[no-untyped-call]
            grad.shape, q.shape, k.shape, v.shape
        )
    ),
}
_FREE = (_ATEN._unsafe_view, _ATEN.detach)


class TracePart(NamedTuple):
    """A part of a trace holds what ran between two calls of ``cut``.

    Amounts are (1 + layers,): a fixed amount, and that for each held term of each layer.
    """

    flops: IntArray
    moved_bytes: IntArray
    conversions: IntArray
    instants: list[frozenset[int]]  # the tensors that lived after each operator

    @property
    def fixed_flops(self) -> int:
        """Return the FLOPs that do not depend on the number of terms."""
        return int(self.flops[0])


class OperatorTrace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """An operator trace runs operators on fake tensors and records storages, FLOPs and bytes.

    ``ranks`` are the numbers of terms that each layer holds meanwhile. They are primes above every
    other size, so that an amount that one divides grows with that layer's terms alone. ``resident``
    are tensors that live throughout, and ``arguments`` those that a block may keep or release.
    """

    def __init__(
        self, ranks: Sequence[int], resident: Iterable[Tensor], arguments: Sequence[Tensor]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._ranks = ranks
        self._known: dict[int, int | None] = {_place(tensor): None for tensor in resident}
        self.arguments = set(range(len(arguments)))  # indices of the arguments that still live
        for index, argument in enumerate(arguments):
            storage = argument.untyped_storage()
            self._known[storage._cdata] = None
            weakref.finalize(storage, self._forget_argument, storage._cdata, index)
        self.tensors: list[TracedTensor] = []
        self.live: set[int] = set()
        self._is_noting = True
        self._reset()

    def _reset(self) -> None:
        self._flops, self._moved = np.zeros((2, 1 + len(self._ranks)), dtype=np.int64)
        self._conversions = np.zeros(len(self._ranks), dtype=np.int64)
        self._instants: list[frozenset[int]] = []

    def cut(self) -> TracePart:
        """Return what was recorded since the last cut, and begin a new part."""
        found = TracePart(self._flops, self._moved, self._conversions, self._instants)
        self._reset()
        return found

    @property
    def live_bytes(self) -> int:
        """Return the bytes of all recorded tensors that still live."""
        return self.bytes_of(self.live)

    def bytes_of(self, tensors: Iterable[int]) -> int:
        """Return the bytes of recorded tensors, as they were computed."""
        return sum(self.tensors[k].elements * self.tensors[k].bits // 8 for k in tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.namespace != "aten":
            return result
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for output in outputs:
            self._note_storage(output)
        if self._is_noting:
            self._note_work(func, args, kwargs, result)
        self._instants.append(frozenset(self.live))
        return result

    def index(self, tensor: Tensor) -> int | None:
        """Return the number of a tensor's recorded storage, None if it is resident."""
        return self._known[_place(tensor)]

    def converted(self, layer: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return a frozen weight as an operand; what unpacking it needs lives for a moment."""
        self._conversions[layer] += 1
        weight = self.made(shape, dtype, "weight")
        self.made(shape, torch.uint8, "unpacking weight")
        return weight

    def made(self, shape: Sequence[int], dtype: torch.dtype, kind: TensorKind) -> Tensor:
        """Return an empty tensor that counts as of this kind, and not as an operator's work."""
        with self._as(kind):
            return torch.empty(shape, dtype=dtype)

    @contextmanager
    def without_work_of(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        """Count the operators of these modules as no work for a while."""

        def note(is_noting: bool) -> Callable[..., None]:
            return lambda *_: setattr(self, "_is_noting", is_noting)

        handles = [
            handle
            for module in modules
            for handle in (
                module.register_forward_pre_hook(note(False)),
                module.register_forward_hook(note(True)),
            )
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _as(self, kind: TensorKind) -> Iterator[None]:
        self._is_noting, self._kind = False, kind
        try:
            yield
        finally:
            self._is_noting, self._kind = True, "plain"

    _kind: TensorKind = "plain"

    def _note_storage(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place in self._known:
            return
        index = self._known[place] = len(self.tensors)
        self.live.add(index)
        width = tensor.element_size()
        elements, layer = self._by_rank(storage.nbytes() // width)
        self.tensors.append(TracedTensor(elements, 8 * width, layer, self._kind))
        weakref.finalize(storage, self._forget, place, index)

    def _forget(self, place: int, index: int) -> None:
        del self._known[place]
        self.live.discard(index)

    def _forget_argument(self, place: int, index: int) -> None:
        del self._known[place]  # another storage may get this address
        self.arguments.discard(index)

    def _by_rank(self, amount: int) -> tuple[int, int | None]:
        for layer, rank in enumerate(self._ranks):
            if amount and rank > 1 and amount % rank == 0:
                return amount // rank, layer
        return amount, None

    def _note_work(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        packet = func.overloadpacket
        if packet in _FLASH:
            self._add(self._flops, _FLASH[packet](*args, **kwargs))
        elif packet in flop_registry:
            self._add(self._flops, flop_registry[packet](*args, **kwargs, out_val=result))
        if func.is_view or packet in _FREE:
            return
        if packet is _ATEN.add_ and self._known.get(_place(args[0]), 0) is None:
            return  # gradients exist here before; in training a first one is stored, not added
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, Tensor):  # of an expanded tensor, the storage is read once
                self._add(self._moved, min(leaf.nbytes, leaf.untyped_storage().nbytes()))

    def _add(self, total: IntArray, amount: int) -> None:
        of_one, layer = self._by_rank(amount)
        total[0 if layer is None else 1 + layer] += of_one


def _place(tensor: Tensor) -> int:
    place: int = tensor.untyped_storage()._cdata
    return place


def pass_trace(cut: TracePart, num_tensors: int) -> PassTrace:
    """Return the trace of one pass, where both passes have ``num_tensors`` tensors."""
    live = _worst(cut.instants, num_tensors)
    return PassTrace(cut.flops, cut.moved_bytes, cut.conversions, live)


def _worst(instants: Sequence[frozenset[int]], num_tensors: int) -> BoolArray:
    """Return (instants, tensors): which tensors live at instants that may be a peak.

    An instant is left out where its tensors are a part of those of another.
    """
    distinct = list(dict.fromkeys(instants))
    live = np.zeros((len(distinct), num_tensors), dtype=np.int64)
    for row, instant in enumerate(distinct):
        live[row, list(instant)] = 1
    common = live @ live.T
    is_part = common == live.sum(axis=1)[:, None]
    np.fill_diagonal(is_part, val=False)
    kept: BoolArray = live[~is_part.any(axis=1)].astype(np.bool_)
    return kept


@dataclass(frozen=True, eq=False)
class ShadowActivation:
    """A shadow activation stands in for a saved tensor that was packed."""

    trace: OperatorTrace
    packed: Tensor
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    extent: int = field(default=0)  # number of elements

    def unpack(self) -> Tensor:
        """Return the unpacked tensor; what unpacking it needs lives for a moment."""
        values = self.trace.made((self.extent,), self.dtype, "plain")
        self.trace.made((self.extent,), self.dtype, "unpacking")
        return values.as_strided(self.shape, self.stride)


def shadow_packed(trace: OperatorTrace, tensor: Tensor, bits: int) -> ShadowActivation:
    """Return the stand-in for a packed tensor, which takes the memory of ``pack_activation``.

    ``bits`` are 4, or 8 for a tensor that no plan packs further.
    """
    kind: TensorKind = "planned" if bits == 4 else "attention"
    extent = tensor.numel()
    packed = trace.made((extent,), tensor.dtype, kind)
    trace.made((extent,), tensor.dtype, "packing")
    return ShadowActivation(trace, packed, tensor.dtype, tensor.shape, tensor.stride(), extent)
