"""What a plan adds to the local loss."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from devices.plan import TailPenalty
from devices.training.adapters import LoadedAdapter
from devices.training.model import ADAPTER


def tail_penalty(loaded: LoadedAdapter, penalty: TailPenalty) -> Tensor:
    """(): weight * sum over layers of ||B_tail||_F ||A_tail||_F, with a gradient to both factors.

    Where a factor is zero, as B is at first, its norm has the subgradient zero.
    """
    products = [b.norm() * a.norm() for a, b in _tails(loaded, penalty.first_term)]
    return penalty.weight * torch.stack(products).sum()


def _tails(loaded: LoadedAdapter, first_term: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each layer, the held terms' rows of A, (r, in), and columns of B, (out, r)."""
    for key, layer in loaded.model.lora_layers.items():
        held, trained = (
            mask[loaded.place(key)] for mask in (loaded.grid.held, loaded.grid.trained)
        )
        # Loaded terms lie with the trained ones first.
        order = np.concatenate([np.flatnonzero(trained), np.flatnonzero(held & ~trained)])
        tail = torch.tensor(np.flatnonzero(order >= first_term), device=loaded.model.host.device)
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        yield a.index_select(0, tail), b.index_select(1, tail)
