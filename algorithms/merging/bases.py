"""Keeps track of what was merged into the frozen weights, and of what each device has missed of it.

Where a strategy adds a product to the base in every round, a device must have all of them before it
trains. It downloads those of the rounds since it last took part, or, where they are no smaller,
one matrix a layer with the sum of all rounds. The server keeps no older products than that. A
device is known to have a round's base once its update has arrived.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from devices.vocabulary.adapter import Merged, Product
from devices.vocabulary.merged import is_dense, summed
from devices.vocabulary.plan import Adapter, ClientUpdate, DeviceId, Factors, ModuleKey
from traces.arrays import IntArray

Stack = Mapping[ModuleKey, Factors]
"""What one round added to the base; a layer to which nothing was added is absent."""
Missed = Mapping[ModuleKey, tuple[Product, ...]]
"""The products by layer that turn a device's base into the current one when they are added."""


@dataclass(frozen=True, eq=False)
class Bases:
    """Bases record which version of the base each device holds, and the stacks that came since."""

    stacks: tuple[Stack, ...] = ()  # one for each of the last rounds, the latest last
    held: Mapping[DeviceId, int] = field(default_factory=dict)  # absent: 0, the pretrained base

    def after(self, stack: Stack, updates: Sequence[ClientUpdate]) -> Bases:
        """Return the bases once a round has added a stack, by these updates."""
        held = dict(self.held)
        for update in updates:
            device_id = update.plan.device_id
            held[device_id] = max(held.get(device_id, 0), update.base_version)
        return Bases(worth_keeping((*self.stacks, stack)), held)

    def missed(self, adapter: Adapter, version: int, device_id: DeviceId) -> Missed:
        """Return what a device has missed of what was merged into the global ``adapter``."""
        whole = adapter.merged.products
        num_rounds = version - self.held.get(device_id, 0)
        if num_rounds > len(self.stacks):
            return {key: (product,) for key, product in whole.items()}
        since = self.stacks[len(self.stacks) - num_rounds :]
        parts = {key: tuple(stack[key] for stack in since if key in stack) for key in whole}
        return {
            key: (whole[key],) if exceeds_matrix(factors) else factors
            for key, factors in parts.items()
            if factors
        }


def merged_with(merged: Merged, stack: Stack) -> Merged:
    """Return what is merged once a stack has been added to it."""
    before = merged.products
    after = {
        key: summed([before[key], new] if key in before else [new]) for key, new in stack.items()
    }
    return Merged({**before, **after})


def missed_ranks(adapter: Adapter, products: Missed) -> IntArray:
    """Return (L, M): the rank of what is sent for a layer; a whole matrix counts its own."""
    modules = adapter.modules
    ranks = np.zeros((len(adapter.factors) // len(modules), len(modules)), dtype=np.int64)
    for key, parts in products.items():
        ranks[key.block, modules.index(key.module)] = sum(
            len(part.a) if isinstance(part, Factors) else min(part.shape) for part in parts
        )
    return ranks


def exceeds_matrix(factors: Sequence[Factors]) -> bool:
    """Return whether factors side by side would be no smaller than their product."""
    rank = sum(len(a) for a, _ in factors)
    return bool(factors) and is_dense(rank, inputs=factors[0].a.shape[1], outputs=len(factors[0].b))


def worth_keeping(stacks: tuple[Stack, ...]) -> tuple[Stack, ...]:
    """Return the stacks that may still be sent.

    A stack is dropped once it and all after it are, in each layer, no smaller than the matrix."""
    for first in range(len(stacks) - 1, -1, -1):
        since = stacks[first:]
        keys = {key for stack in since for key in stack}
        if all(exceeds_matrix([stack[k] for stack in since if k in stack]) for k in keys):
            return stacks[first + 1 :]
    return stacks
