"""Measures how much each rank-1 term matters, from the updates that the server decodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from algorithms.merging.lora import holder_weights
from devices.vocabulary.plan import Adapter, ClientUpdate, Factors, ModuleKey
from traces.arrays import BoolArray, Float32Array, FloatArray


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Sensitivity is smoothed for every element of an adapter, as in AdaLoRA (2303.10512).

    ``mean`` and ``spread`` are its moving averages Ibar and Ubar, shaped like the adapter.
    """

    mean: Mapping[ModuleKey, Factors]
    spread: Mapping[ModuleKey, Factors]
    is_measured: BoolArray  # (L, M, R): terms that some device has sent

    @classmethod
    def unknown(cls, adapter: Adapter) -> Sensitivity:
        """Return what is known before the first update: nothing, and every score is 0."""
        zeros = {
            key: Factors(np.zeros_like(a), np.zeros_like(b))
            for key, (a, b) in adapter.factors.items()
        }
        return cls(zeros, zeros, np.zeros_like(magnitudes(adapter), dtype=bool))

    @cached_property
    def score(self) -> FloatArray:
        """Return (L, M, R): the means of s = Ibar * Ubar over a term's row of A and column of B.

        The sum of both means. Its unit carries the learning rate^-2, which changes no order.
        """
        return _term_grid(
            {
                # The product is taken in float64, since it may underflow in float32.
                key: _term_means(
                    np.multiply(i.a, self.spread[key].a, dtype=np.float64),
                    np.multiply(i.b, self.spread[key].b, dtype=np.float64),
                )
                for key, i in self.mean.items()
            }
        )

    def observe(
        self, updates: Sequence[ClientUpdate], *, beta1: float, beta2: float
    ) -> Sensitivity:
        """Return the averages after one aggregation; a term that nobody sent keeps its own.

        I = |w_start * (w_start - w_end)| is averaged by examples over the devices that sent the
        term. The learning rate that would make a gradient of the difference is a constant factor.
        """
        weights = holder_weights(updates)  # (K, L, M, R)
        sent = weights.sum(axis=0) > 0
        modules = [key.module for key in self.mean if key.block == 0]
        mean, spread = {}, {}
        for key, i_old in self.mean.items():
            place = (key.block, modules.index(key.module))
            now = _mean_sensitivity(updates, key, weights[(slice(None), *place)])
            fresh = sent[place][:, None]  # (R, 1)
            u_old = self.spread[key]
            a, u_a = _smooth(now.a, (i_old.a, u_old.a), fresh, (beta1, beta2))
            b, u_b = _smooth(now.b, (i_old.b, u_old.b), fresh.T, (beta1, beta2))
            mean[key], spread[key] = Factors(a, b), Factors(u_a, u_b)
        return Sensitivity(mean, spread, self.is_measured | sent)


def magnitudes(adapter: Adapter) -> FloatArray:
    """Return (L, M, R): the mean magnitude of a term's row of A plus that of its column of B."""
    return _term_grid(
        {key: _term_means(np.abs(a), np.abs(b)) for key, (a, b) in adapter.factors.items()}
    )


def _mean_sensitivity(
    updates: Sequence[ClientUpdate], key: ModuleKey, weights: FloatArray
) -> Factors:
    """Return the sensitivities I of one module's elements; ``weights`` is (K, R)."""
    total_a, total_b = map(np.zeros_like, updates[0].broadcast.adapter.factors[key])
    for update, share in zip(updates, weights.astype(np.float32), strict=True):
        if update.adapter is update.broadcast.adapter:
            continue  # a run in timing only trains nothing, so this update has no change
        start, end = update.broadcast.adapter.factors[key], update.adapter.factors[key]
        total_a = total_a + share[:, None] * np.abs(start.a * (start.a - end.a))
        total_b = total_b + share * np.abs(start.b * (start.b - end.b))
    return Factors(total_a, total_b)


def _smooth(
    now: Float32Array,
    old: tuple[Float32Array, Float32Array],
    fresh: BoolArray,
    betas: tuple[float, float],
) -> tuple[Float32Array, Float32Array]:
    """Return Ibar <- beta1 Ibar + (1 - beta1) I, and Ubar likewise of |I - Ibar| with beta2."""
    beta1, beta2 = np.float32(betas[0]), np.float32(betas[1])
    mean = np.where(fresh, beta1 * old[0] + (1 - beta1) * now, old[0])
    spread = np.where(fresh, beta2 * old[1] + (1 - beta2) * np.abs(now - mean), old[1])
    return mean, spread


def _term_means(a: FloatArray | Float32Array, b: FloatArray | Float32Array) -> FloatArray:
    """Return (R,): the mean of each row of A (R, in) plus that of each column of B (out, R)."""
    means: FloatArray = a.mean(axis=1, dtype=np.float64) + b.mean(axis=0, dtype=np.float64)
    return means


def _term_grid(terms: Mapping[ModuleKey, FloatArray]) -> FloatArray:
    """Return (L, M, R) from (R,) of each module, the modules of a block in their order."""
    num_blocks = 1 + max(key.block for key in terms)
    return np.array(
        [[row for key, row in terms.items() if key.block == block] for block in range(num_blocks)]
    )


def choose_terms(
    score: FloatArray, nums_terms: Sequence[int], *, explore_share: float, rng: np.random.Generator
) -> BoolArray:
    """Return (n, L, M, R): for each of n devices the best terms of each module, as many as it has.

    Ties are broken at random. Each of a device's slots goes, with probability ``explore_share``, to
    a term drawn at random from those without a slot. Devices draw one after the other.
    """
    num_drawn = np.empty((len(nums_terms), *score.shape[:2], 1), dtype=np.int64)
    draws = np.empty((len(nums_terms), 2, *score.shape))
    for row, num_terms in enumerate(nums_terms):
        num_drawn[row] = rng.binomial(num_terms, explore_share, size=num_drawn.shape[1:])
        rng.random(out=draws[row])
    num_slots = np.array(nums_terms, dtype=np.int64).reshape(-1, 1, 1, 1)
    ties, drawn = draws[:, 0], draws[:, 1]
    by_score = np.lexsort((ties, np.broadcast_to(-score, ties.shape)))  # along the last axis
    is_top = np.argsort(by_score) < num_slots - num_drawn
    by_draw = np.argsort(np.where(is_top, -1.0, drawn))
    chosen: BoolArray = np.argsort(by_draw) < num_slots
    return chosen
