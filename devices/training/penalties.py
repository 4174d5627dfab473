"""Computes the penalties that a plan adds to the local loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from devices.training.adapters import LoadedAdapter, place_of
from devices.training.model import ADAPTER
from devices.vocabulary.plan import TailPenalty, TrainingPlan

Penalty = Callable[[], Tensor]


def penalties_of(loaded: LoadedAdapter, plan: TrainingPlan) -> list[Penalty]:
    """Return all penalties of a plan; a distance is one from the parameters as they are now."""
    penalties: list[Penalty] = []
    if plan.tail_penalty:
        penalties.append(partial(tail_penalty, loaded, plan.tail_penalty))
    if plan.proximal_mu:
        penalties.append(proximal_term(loaded.parameters(), plan.proximal_mu))
    return penalties


def proximal_term(parameters: Sequence[nn.Parameter], mu: float) -> Penalty:
    """Return the penalty mu/2 ||w - w_0||^2, with gradient mu (w - w_0); w_0 is w as it is now.

    Li et al.: "Federated Optimization in Heterogeneous Networks" (FedProx), arXiv 1812.06127,
    equation (2). A part of the loss, so that AdamW scales its gradient as it scales the rest,
    unlike the weight decay that it applies by itself.
    """
    origin = [parameter.detach().clone() for parameter in parameters]

    def term() -> Tensor:
        pairs = zip(parameters, origin, strict=True)
        return mu / 2 * torch.stack([(w - w_0).square().sum() for w, w_0 in pairs]).sum()

    return term


def correction_term(parameters: Sequence[nn.Parameter], correction: Sequence[Tensor]) -> Penalty:
    """Return the term sum correction w, whose gradient is the correction itself.

    It adds c - c_k to the gradient of every step, as SCAFFOLD has it (arXiv 1910.06378, Algorithm
    1), once in all micro-batches of a step.
    """

    def term() -> Tensor:
        pairs = zip(parameters, correction, strict=True)
        return torch.stack([(w * added).sum() for w, added in pairs]).sum()

    return term


def tail_penalty(loaded: LoadedAdapter, penalty: TailPenalty) -> Tensor:
    """Compute weight * sum over layers of ||B_tail||_F ||A_tail||_F, a scalar with gradients.

    Where a factor is zero, as B is at first, its norm has the subgradient zero.
    """
    products = [b.norm() * a.norm() for a, b in _tails(loaded, penalty.first_term)]
    return penalty.weight * torch.stack(products).sum()


def _tails(loaded: LoadedAdapter, first_term: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Give the tail of each layer: its terms' rows of A, (r, in), and columns of B, (out, r)."""
    for key, layer in loaded.model.lora_layers.items():
        held, trained = (
            mask[place_of(loaded.model, key)] for mask in (loaded.grid.held, loaded.grid.trained)
        )
        # The loaded factors hold the trained terms first, then the frozen ones.
        order = np.concatenate([np.flatnonzero(trained), np.flatnonzero(held & ~trained)])
        tail = torch.tensor(np.flatnonzero(order >= first_term), device=loaded.model.host.device)
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        yield a.index_select(0, tail), b.index_select(1, tail)
