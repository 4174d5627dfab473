"""Builds the model of two blocks, without numbers, on which costs are traced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_flatten

from devices.cost.block_trace import LayerState
from devices.cost.blocks import BatchShape
from devices.models.spec import ModelSpec
from devices.tracing.operator_trace import OperatorTrace
from devices.tracing.outline import built
from devices.training.adapters import Terms
from devices.training.model import (
    ADAPTER,
    block_path,
    head_names,
    layer_path,
    lora_config,
    packable,
)
from devices.vocabulary.plan import FactorName

NUM_BLOCKS = 2
"""Blocks of a meta model: the first, and one that represents all others."""
PRIMES = (1000003, 1000033, 1000037, 1000039, 1000081, 1000099, 1000117, 1000121, 1000133,
           1000151, 1000159, 1000171)  # fmt: skip
"""Numbers of terms for each layer while it is traced.

No other size of a block is a multiple of them, so a size that is grows with that layer's terms.
"""


class BlockCall(NamedTuple):
    """A block call holds how a model calls its blocks, without the hidden states."""

    leaves: tuple[Any, ...]  # the flattened arguments, which include tensors
    structure: Any  # the nesting of the arguments, as torch's pytree describes it
    returns_tuple: bool

    @property
    def tensors(self) -> list[Tensor]:
        """Return the tensors among the arguments."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]


class _ShadowLinear(nn.Linear):
    """A shadow linear stands in for a frozen layer that converts its weight for each product."""

    trace: OperatorTrace | None = None
    place = 0

    def forward(self, input: Tensor) -> Tensor:
        if self.trace is None:
            return functional.linear(input, self.weight, self.bias)
        product: Tensor = _ShadowProduct.apply(input, self)  # type: ignore[no-untyped-call]
        return product

    def operand(self, dtype: torch.dtype) -> Tensor:
        """Return a converted weight (out, in), made for one product."""
        assert self.trace
        return self.trace.converted(self.place, self.weight.shape, dtype)


class _ShadowProduct(torch.autograd.Function):
    """This product with a packed weight saves nothing for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _ShadowLinear) -> Tensor:
        ctx.layer = layer
        return functional.linear(x, layer.operand(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.layer.operand(grad.dtype), None


class MetaModel:
    """A meta model has two blocks with peft's LoRA layers around stand-ins of linear layers."""

    def __init__(self, spec: ModelSpec, config: Mapping[str, Any], *, lora_dropout: float) -> None:
        self.spec, self.dtype = spec, torch.float32
        with torch.device("meta"):
            network = built(
                config,
                head=spec.head,
                attention=spec.attention,
                num_blocks=NUM_BLOCKS,
            )
            self.shadows = [_shadow(network, spec, place) for place in range(len(spec.linears))]
            adapters = lora_config(spec, rank=1, alpha=1.0, dropout=lora_dropout)
            self.network: Any = get_peft_model(network, adapters)
        self.network.eval().requires_grad_(False)
        for name, module in self.network.named_modules():
            if name.endswith("lora_dropout"):
                module.train()  # only the adapters have dropout
        for name in head_names(spec):
            network.get_submodule(name).modules_to_save[ADAPTER].requires_grad_(True)
        self.base = network
        self.blocks: list[nn.Module] = [
            network.get_submodule(block_path(spec, block)) for block in range(NUM_BLOCKS)
        ]
        self._adapted = {
            layer.name: network.get_submodule(layer_path(spec, 0, layer.name))
            for layer in spec.targets
        }
        self.ranks = [1] * len(spec.linears)

    def fill(self, dtype: torch.dtype) -> None:
        """Replace the tensors of the meta device by fake ones of a CPU, in this number format."""
        self.dtype = dtype
        for module in self.network.modules():
            for values in (module._parameters, module._buffers):
                for name, value in values.items():
                    if value is not None:
                        kind = dtype if value.is_floating_point() else value.dtype
                        values[name] = _like(value, torch.empty(value.shape, dtype=kind))

    def install(
        self, layers: Sequence[LayerState], *, trained_factors: Sequence[FactorName] = ("a", "b")
    ) -> None:
        """Give each layer of the first block that holds terms a prime number of them."""
        for place, (layer, state) in enumerate(zip(self.spec.linears, layers, strict=True)):
            self.ranks[place] = PRIMES[place] if state.holds else 1
            if layer.name not in self._adapted:
                continue
            adapted = self._adapted[layer.name]
            path = layer_path(self.spec, 0, layer.name)
            self.base.set_submodule(path, adapted if state.holds else self.shadows[place])
            if state.holds:
                rank = PRIMES[place]
                a, b = (rank, layer.in_features), (layer.out_features, rank)
                trains_a, trains_b = (
                    state.trains and name in trained_factors for name in ("a", "b")
                )
                adapted.lora_A[ADAPTER] = self._terms(a, axis=0, trains=trains_a)
                adapted.lora_B[ADAPTER] = self._terms(b, axis=1, trains=trains_b)
        self.parts = packable(self.base, self.spec, 0)

    @property
    def rotary_tables(self) -> list[nn.Module]:
        """Return the modules that compute the tables of rotary positions."""
        return [module for module in self.network.modules() if "Rotary" in type(module).__name__]

    @contextmanager
    def traced(self, trace: OperatorTrace) -> Iterator[None]:
        """Record conversions of weights in an operator trace for a while."""
        for shadow in self.shadows:
            shadow.trace = trace
        yield
        for shadow in self.shadows:
            shadow.trace = None

    def _terms(self, shape: tuple[int, int], *, axis: int, trains: bool) -> Terms:
        every, none = torch.arange(shape[axis]), torch.arange(0)
        chosen = (every, none) if trains else (none, every)
        return Terms(torch.empty(shape, dtype=self.dtype), *chosen, axis=axis)

    def call(self, batch: BatchShape) -> BlockCall:
        """Return how the model calls its first block."""
        noted: dict[str, Any] = {}

        def note(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            noted.update(rest=(args[1:], kwargs), returns_tuple=isinstance(output, tuple))

        self.install([LayerState(False, False)] * len(self.spec.linears))
        handle = self.blocks[0].register_forward_hook(note, with_kwargs=True)
        with torch.no_grad():
            self.forward(*texts(batch))
        handle.remove()
        leaves, structure = tree_flatten(noted["rest"])
        return BlockCall(tuple(leaves), structure, noted["returns_tuple"])

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the logits of tokens (b, s), in fp32 where the loss needs them so."""
        logits: Tensor = self.base(input_ids=ids, attention_mask=mask).logits
        return logits.float() if self.spec.head.has_fp32_loss else logits

    def resident(self) -> Iterator[Tensor]:
        """Yield the tensors that live before and after a step, gradients included."""
        for parameter in self.network.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            yield from (parameter, *([] if parameter.grad is None else [parameter.grad]))
        yield from self.network.buffers()


def _like(value: Tensor, fake: Tensor) -> Tensor:
    return nn.Parameter(fake, value.requires_grad) if isinstance(value, nn.Parameter) else fake


def _shadow(network: Any, spec: ModelSpec, place: int) -> _ShadowLinear:
    """Replace a linear layer of the first block by its stand-in, and return that."""
    layer = spec.linears[place]
    shadow = _ShadowLinear(layer.in_features, layer.out_features, bias=layer.bias)
    shadow.place = place
    network.set_submodule(layer_path(spec, 0, layer.name), shadow)
    return shadow


def texts(batch: BatchShape) -> tuple[Tensor, Tensor]:
    """Return tokens (b, s) and the mask (b, s) of a batch, with arbitrary tokens."""
    ids = torch.ones(batch.size, batch.length, dtype=torch.long)
    return ids, torch.ones_like(ids)
