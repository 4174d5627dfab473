"""Trains many jobs in one pass: each has its own factors and head, over one frozen base.

A batch holds the rows of one job after those of another, equally many of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from devices.training.adapters import check_fits, numbers_of, place_of, trained_terms
from devices.training.model import ADAPTER, AdaptedModel
from devices.training.optimizers import OwnPart
from devices.training.penalties import Penalty, proximal_term
from devices.vocabulary.plan import Adapter, Factors, ModuleKey
from devices.vocabulary.trainer import TrainingJob
from traces.arrays import Float32Array, IntArray


class StackedFactor(nn.Module):
    """A stacked factor is one factor of n jobs' terms in one layer, to multiply from the right.

    (n, in, r) of A or (n, r, out) of B, trained terms first along ``axis``. Where another job has
    more terms, zeros stand in both factors, and stay: the gradient of either is a multiple of the
    other.
    """

    def __init__(self, trained: Tensor, frozen: Tensor, *, axis: int) -> None:
        super().__init__()
        self._axis = axis
        self.trained = nn.Parameter(trained) if trained.shape[axis] else None
        self.frozen = nn.Buffer(frozen)

    @property
    def weight(self) -> Tensor:
        """Return the factors of all jobs: (n, in, r) for A, (n, r, out) for B."""
        if self.trained is None:
            return self.frozen
        return torch.cat([self.trained, self.frozen], dim=self._axis)

    def forward(self, x: Tensor) -> Tensor:
        return _product(x, self.weight)


@dataclass(frozen=True, eq=False)
class LoadedStack:
    """A loaded stack is the adapters of several jobs inside the model, until the next is loaded."""

    model: AdaptedModel
    jobs: Sequence[TrainingJob]
    head: Mapping[str, nn.Parameter]  # (n, *shape)

    def parameters(self) -> list[nn.Parameter]:
        """Return all that trains, terms and heads; the first axis of each counts the jobs."""
        return [*trained_terms(self.model), *self.head.values()]

    def own_parts(self) -> list[OwnPart]:
        """Return what each job trains of each tensor, without the zeros below its own terms."""
        parts = [OwnPart(w, (k,)) for w in self.head.values() for k in range(len(self.jobs))]
        for key, layer in self.model.lora_layers.items():
            place = place_of(self.model, key)
            for factor, axis in ((layer.lora_A[ADAPTER], 1), (layer.lora_B[ADAPTER], 0)):
                if factor.trained is None:
                    continue
                for k, job in enumerate(self.jobs):
                    if count := int(job.plan.terms.trained[place].sum()):
                        rows = (slice(count),) if axis == 0 else (slice(None), slice(count))
                        parts.append(OwnPart(factor.trained, (k, *rows)))
        return parts

    def penalties(self) -> list[Penalty]:
        """Return the penalties on the sum of the local losses, which are alike in all plans."""
        mu = self.jobs[0].plan.proximal_mu
        return [proximal_term(self.parameters(), mu)] if mu else []

    @contextmanager
    def heads(self) -> Iterator[None]:
        """Put each job's own head in place of the shared one while the context is open."""
        with ExitStack() as undo:
            for name, linear in self.model.head_layers.items():
                weight, bias = self.head[f"{name}.weight"], self.head.get(f"{name}.bias")
                linear.__dict__["forward"] = partial(_linear, weight=weight, bias=bias)
                undo.callback(delattr, linear, "forward")  # so that the class's method holds again
            yield

    def read(self) -> list[Adapter]:
        """Return each job's adapter as it is now; frozen and truncated terms are as loaded."""
        return [self._read(k) for k in range(len(self.jobs))]

    def _read(self, k: int) -> Adapter:
        start, grid = self.jobs[k].broadcast.adapter, self.jobs[k].plan.terms
        factors = {}
        for key, layer in self.model.lora_layers.items():
            trained = np.flatnonzero(grid.trained[place_of(self.model, key)])
            a, b = (factor.copy() for factor in start.factors[key])
            if len(trained):
                if "a" in grid.trained_factors:
                    a[trained] = numbers_of(layer.lora_A[ADAPTER].trained[k, :, : len(trained)]).T
                if "b" in grid.trained_factors:
                    b[:, trained] = numbers_of(layer.lora_B[ADAPTER].trained[k, : len(trained)]).T
            factors[key] = Factors(a, b)
        head = {name: numbers_of(values[k]) for name, values in self.head.items()}
        return replace(start, factors=factors, head=head)


def load_stack(model: AdaptedModel, jobs: Sequence[TrainingJob]) -> LoadedStack:
    """Put the held terms of each job into the model's layers; ``heads`` puts in the heads.

    Raises ValueError unless the model takes every tensor of the adapters, and the grids are its
    own.
    """
    for job in jobs:
        check_fits(model, job.broadcast.adapter, job.plan.terms)
    for key, layer in model.lora_layers.items():
        _load_layer(model, key, layer=layer, jobs=jobs)
    heads = [job.broadcast.adapter.head for job in jobs]
    head = {
        name: nn.Parameter(
            torch.from_numpy(np.stack([one[name] for one in heads])).to(model.host.device)
        )
        for name in model.head
    }
    return LoadedStack(model, jobs, head)


def _load_layer(
    model: AdaptedModel, key: ModuleKey, *, layer: Any, jobs: Sequence[TrainingJob]
) -> None:
    place, device = place_of(model, key), model.host.device
    grids = [job.plan.terms for job in jobs]
    trained = [np.flatnonzero(grid.trained[place]) for grid in grids]
    frozen = [np.flatnonzero(grid.held[place] & ~grid.trained[place]) for grid in grids]
    adapters = [job.broadcast.adapter.factors[key] for job in jobs]
    a = [_side_by_side([f.a for f in adapters], chosen).mT for chosen in (trained, frozen)]
    b = [_side_by_side([f.b.T for f in adapters], chosen) for chosen in (trained, frozen)]
    # If only one factor is trained, the other is frozen as a whole, in the same order of terms.
    if "a" not in grids[0].trained_factors:
        a = [a[0][:, :, :0], torch.cat(a, dim=2)]
    if "b" not in grids[0].trained_factors:
        b = [b[0][:, :0], torch.cat(b, dim=1)]
    layer.lora_A[ADAPTER] = StackedFactor(*(part.contiguous().to(device) for part in a), axis=2)
    layer.lora_B[ADAPTER] = StackedFactor(*(part.to(device) for part in b), axis=1)
    layer.scaling[ADAPTER] = jobs[0].broadcast.adapter.scale


def _side_by_side(factors: Sequence[Float32Array], chosen: Sequence[IntArray]) -> Tensor:
    """Return (n, r, width): the chosen rows of each of n jobs' factors, padded with zeros to r."""
    rows = np.zeros((len(factors), max(map(len, chosen)), factors[0].shape[1]), dtype=np.float32)
    for row, factor, indices in zip(rows, factors, chosen, strict=True):
        row[: len(indices)] = factor[indices]
    return torch.from_numpy(rows)


def _linear(x: Tensor, *, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = _product(x, weight.mT)
    if bias is None:
        return product
    return (product.view(len(bias), -1, bias.shape[-1]) + bias[:, None]).view(product.shape)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """Return (n B, ..., out): the B rows of each job in ``x`` (n B, ..., in) times its own matrix.

    ``weight`` is (n, in, out).
    """
    rows = x.reshape(len(weight), -1, x.shape[-1])
    return torch.bmm(rows, weight).view(*x.shape[:-1], weight.shape[-1])
