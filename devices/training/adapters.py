"""Puts an adapter into the model as a plan trains and freezes its terms, and reads it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from devices.training.model import ADAPTER, AdaptedModel
from devices.vocabulary.plan import Adapter, Factors, ModuleKey, TermGrid
from traces.arrays import BoolArray, Float32Array


class Terms(nn.Module):
    """Terms are one factor of the terms that a job holds in one layer, in place of peft's Linear.

    Rows of A (``axis`` 0) or columns of B (``axis`` 1), trained ones first: the sum over terms has
    no order. Only trained ones are parameters, so that no gradient, no optimizer state and no
    weight decay can reach the frozen ones.
    """

    def __init__(self, factor: Tensor, trained: Tensor, frozen: Tensor, *, axis: int) -> None:
        super().__init__()
        self._axis = axis
        self.trained = (
            nn.Parameter(factor.index_select(axis, trained).contiguous()) if len(trained) else None
        )
        self.frozen = nn.Buffer(factor.index_select(axis, frozen).contiguous())

    @property
    def weight(self) -> Tensor:
        """Return the whole factor: (r, in) for A, (out, r) for B."""
        if self.trained is None:
            return self.frozen
        if self.frozen.shape[self._axis] == 0:
            return self.trained
        return torch.cat([self.trained, self.frozen], dim=self._axis)

    def forward(self, x: Tensor) -> Tensor:
        device_type = x.device.type
        weight = self.weight
        if torch.is_autocast_enabled(device_type):
            dtype = torch.get_autocast_dtype(device_type)
            x, weight = x.to(dtype), weight.to(dtype)
        product: Tensor = _TermProduct.apply(x, weight)  # type: ignore[no-untyped-call]
        return product


class _TermProduct(torch.autograd.Function):
    """This product x @ W.T saves x alone, so that W is not packed as if it were an activation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(x)
        return functional.linear(x, weight)  # (B, T, in) -> (B, T, r) for A

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        grad_x = grad @ ctx.weight if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_x, None
        (x,) = ctx.saved_tensors
        return grad_x, grad.flatten(0, -2).mT @ x.flatten(0, -2)  # (r, BT) @ (BT, in) for A


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """A loaded adapter is one job's adapter inside the model, until the next one is loaded."""

    model: AdaptedModel
    start: Adapter
    grid: TermGrid

    def parameters(self) -> list[nn.Parameter]:
        """Return all that trains: the trained terms, and the head."""
        return [*trained_terms(self.model), *self.model.head.values()]

    def read(self) -> Adapter:
        """Return the adapter as it is now; frozen and truncated terms are as they were loaded."""
        factors = {}
        for key, layer in self.model.lora_layers.items():
            trained = self.grid.trained[place_of(self.model, key)]
            a, b = (factor.copy() for factor in self.start.factors[key])
            if trained.any():
                if "a" in self.grid.trained_factors:
                    a[trained] = numbers_of(layer.lora_A[ADAPTER].trained)
                if "b" in self.grid.trained_factors:
                    b[:, trained] = numbers_of(layer.lora_B[ADAPTER].trained)
            factors[key] = Factors(a, b)
        head = {name: numbers_of(values) for name, values in self.model.head.items()}
        return replace(self.start, factors=factors, head=head)


def load_adapter(model: AdaptedModel, adapter: Adapter, grid: TermGrid) -> LoadedAdapter:
    """Put the held terms and the head of ``adapter`` into the model.

    Raises ValueError unless the model takes every tensor of the adapter, and the grid is its own.
    """
    check_fits(model, adapter, grid)
    for key, layer in model.lora_layers.items():
        held, trained = (mask[place_of(model, key)] for mask in (grid.held, grid.trained))
        chosen = [_indices(mask, model.host.device) for mask in (trained, held & ~trained)]
        a, b = (torch.tensor(factor, device=model.host.device) for factor in adapter.factors[key])
        # If only one factor is trained, the other is frozen as a whole, in the same order of terms.
        frozen = [chosen[0][:0], torch.cat(chosen)]
        of_a, of_b = (chosen if name in grid.trained_factors else frozen for name in ("a", "b"))
        layer.lora_A[ADAPTER] = Terms(a, *of_a, axis=0)
        layer.lora_B[ADAPTER] = Terms(b, *of_b, axis=1)
        layer.scaling[ADAPTER] = adapter.scale
    for name, parameter in model.head.items():
        parameter.requires_grad_(False).copy_(torch.tensor(adapter.head[name]))
        parameter.requires_grad_(True)
        parameter.grad = None  # an interrupted job may have left a gradient
    return LoadedAdapter(model, adapter, grid)


def check_fits(model: AdaptedModel, adapter: Adapter, grid: TermGrid) -> None:
    """Raise ValueError unless the model has a place for every tensor, and the grid is its own."""
    rank = adapter.rank
    sizes = {layer.name: (layer.in_features, layer.out_features) for layer in model.spec.targets}
    expected = {
        key: ((rank, sizes[key.module][0]), (sizes[key.module][1], rank))
        for key in model.lora_layers
    }
    given = {key: (factors.a.shape, factors.b.shape) for key, factors in adapter.factors.items()}
    heads = {name: values.shape for name, values in adapter.head.items()}
    shape = model.spec.grid_shape(rank)
    pairs: list[tuple[str, Mapping[Any, Any], Mapping[Any, Any]]] = [
        ("factors", expected, given),
        ("head", model.spec.head_shapes, heads),
        ("terms", {"(L, M, R)": shape}, {"(L, M, R)": grid.held.shape}),
    ]
    for what, wanted, got in pairs:
        wrong = sorted(str(k) for k in wanted.keys() | got.keys() if wanted.get(k) != got.get(k))
        if wrong:
            raise ValueError(
                f"the adapter's {what} must be those of {model.spec.name} at rank {rank}, "
                f"got others at {', '.join(wrong[:5])}"
            )


def place_of(model: AdaptedModel, key: ModuleKey) -> tuple[int, int]:
    """Return the place (block, module) of a layer's terms in a TermGrid."""
    names = [layer.name for layer in model.spec.targets]
    return key.block, names.index(key.module)


def _indices(mask: BoolArray, device: torch.device) -> Tensor:
    return torch.tensor(np.flatnonzero(mask), device=device)


def trained_terms(model: AdaptedModel) -> list[nn.Parameter]:
    """Return the trained terms of the adapter that is loaded, layer by layer."""
    return [
        factor.trained
        for layer in model.lora_layers.values()
        for factor in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER])
        if factor.trained is not None
    ]


def numbers_of(tensor: Tensor) -> Float32Array:
    """Return a copy of a tensor's numbers."""
    values: Float32Array = tensor.detach().cpu().numpy().copy()
    return values
