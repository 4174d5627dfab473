"""This module counts the bytes that operators read and write, as torch's dispatcher sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from devices.cost.blocks import BatchShape
from tests.devices.cost.torch_measures import Measured


@dataclass(eq=False)
class TrafficCounter(TorchDispatchMode):
    """This mode counts the bytes of all tensors that operators read and write; a view moves
    nothing."""

    total_bytes: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket not in _FREE:
            leaves = tree_leaves((args, kwargs or {}, result))
            self.total_bytes += sum(_moved(leaf) for leaf in leaves if isinstance(leaf, Tensor))
        return result


_FREE = (torch.ops.aten._unsafe_view, torch.ops.aten.detach)


def _moved(tensor: Tensor) -> int:
    """An expanded tensor is read as often as it is there, which is once."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


class BlockBytes(NamedTuple):
    """Read and written by the operators of one block."""

    forward: int
    backward: int


def top_block_traffic(measured: Measured, batch: BatchShape, *, depth: int) -> BlockBytes:
    """Return the last block's traffic; its input needs a gradient where ``depth`` is above 1."""
    block, called = measured.blocks[-1], {}
    measured.train_top(depth)
    handle = block.register_forward_pre_hook(
        lambda _module, args, kwargs: called.update(args=args, kwargs=kwargs), with_kwargs=True
    )
    measured.forward(batch)
    handle.remove()
    hidden = called["args"][0].detach().requires_grad_(depth > 1)
    with TrafficCounter() as forward:
        output = block(hidden, *called["args"][1:], **called["kwargs"])
    output = output[0] if isinstance(output, tuple) else output
    gradient = torch.ones_like(output)
    measured.network.zero_grad(set_to_none=True)
    with TrafficCounter() as backward:
        output.backward(gradient)
    return BlockBytes(forward.total_bytes, backward.total_bytes)
