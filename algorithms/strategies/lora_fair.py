"""LoRA-FAIR: the server corrects the mean of B so that B A comes near the mean of the products.

Bian, Wang, Zhang, Xu: "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization
Refinement", ICCV 2025, arXiv 2411.14961.

Who trains:         the whole cohort.
What they train:    every rank-1 term of the top ``depth`` blocks.
How it is merged:   the mean of A; the mean of B plus dB, so that (B + dB) A nears dW.

dW is sum p_k B_k A_k. dB minimises distance(dW, (B + dB) A) + weight ||dB||, by descent on the
server; a weight of 0.01 and ``cosine``, that is 1 - the cosine of the two matrices, are the paper's
as others tell of it. Devices start from the corrected factors.

Ours: ``frobenius``, whose minimum with squared norms is (dW - B A) A^T (A A^T + weight I)^-1; the
number and size of the descent's steps; ||dB||^2 in place of ||dB||, which has no gradient at the
start; ``depth``, as in ``fedlora``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from algorithms.merging.lora import holder_weights, mean_adapter
from algorithms.strategies.fedlora import Depth, depth_on
from algorithms.strategy import FleetView, ServerState, Strategy, make_plans
from devices.vocabulary.merged import multiplied_out
from devices.vocabulary.plan import ClientUpdate, DeviceId, Factors, TermGrid, TrainingPlan
from traces.arrays import FloatArray
from traces.options import Count, NotNegative, Positive


@dataclass(frozen=True)
class LoRAFAIR(Strategy[None]):
    """LoRA-FAIR gives every device the same plan, and corrects B once the means are taken."""

    kind: ClassVar[str] = "lora-fair"
    title: ClassVar[str] = "LoRA-FAIR: mean of A, B corrected toward the mean of B A"
    draws: ClassVar[bool] = False

    rank: Count = 8
    alpha: Positive = 16.0
    depth: Depth = "all"
    """Trained blocks from the output: all, the most that every device can hold, or a number."""
    distance: Literal["cosine", "frobenius"] = "cosine"
    """How far two updates of a weight are apart: by their angle, or by all of their numbers."""
    weight: NotNegative = 0.01
    """The weight of the squared norm of the correction."""
    descent_steps: Count = 100
    """The steps of the descent, under ``cosine``."""
    descent_rate: Positive = 0.1
    """The size of a step, as a multiple of the squared norm of B."""

    def plan(
        self,
        state: ServerState[None],
        fleet: FleetView,
        cohort: Sequence[DeviceId],
        rng: np.random.Generator,
    ) -> Sequence[TrainingPlan]:
        depth = depth_on(fleet, self.depth, rank=self.rank)
        terms = TermGrid.top_blocks(fleet.model.grid_shape(self.rank), depth)
        return make_plans(fleet, cohort, terms)

    def aggregate(
        self, state: ServerState[None], updates: Sequence[ClientUpdate]
    ) -> ServerState[None]:
        weights = holder_weights(updates)
        mean = mean_adapter(state.adapter, updates, weights)
        factors = dict(mean.factors)
        for key, (a, b) in mean.factors.items():
            # All terms of a layer are sent together, so the first one's weights stand for all.
            shares = weights[:, key.block, mean.modules.index(key.module), 0]
            if shares.any():
                ends = [update.adapter.factors[key] for update in updates]
                products = [multiplied_out(end) for end in ends]
                wanted = np.einsum("k,koi->oi", shares, products)
                change = self._change(wanted, a.astype(np.float64), b.astype(np.float64))
                factors[key] = Factors(a, (b + change).astype(np.float32))
        return state.advance(replace(mean, factors=factors), None)

    def _change(self, wanted: FloatArray, a: FloatArray, b: FloatArray) -> FloatArray:
        if self.distance == "frobenius":
            return ridge(wanted - b @ a, a, self.weight)
        steps, rate = self.descent_steps, self.descent_rate
        return turned(wanted, a, b, weight=self.weight, steps=steps, rate=rate)


def ridge(left: FloatArray, a: FloatArray, weight: float) -> FloatArray:
    """Return the dB (out, R) that minimises ||left - dB A||^2 + weight ||dB||^2.

    By least squares where the weight is zero, so that rows of A may depend on each other.
    """
    square = a @ a.T + weight * np.eye(len(a))
    solution = np.linalg.lstsq(square, a @ left.T, rcond=None)[0].T
    return solution.astype(np.float64)


def turned(
    wanted: FloatArray, a: FloatArray, b: FloatArray, *, weight: float, steps: int, rate: float
) -> FloatArray:
    """Return the dB (out, R) after a descent on 1 - cos(wanted, (B + dB) A) + weight ||dB||^2.

    A step is the gradient times ``rate`` ||B||^2, since the angle does not change with the length
    of B. Zero where either matrix is, which has no direction.
    """
    change: FloatArray = np.zeros(b.shape)
    length = np.linalg.norm(wanted)
    size = rate * np.vdot(b, b)
    for _ in range(steps):
        product = (b + change) @ a
        norm = np.linalg.norm(product)
        if not length or not norm:
            break
        cosine = np.vdot(wanted, product) / (length * norm)
        slope = (cosine * product / norm - wanted / length) / norm @ a.T
        change = change - size * (slope + 2.0 * weight * change)
    return change
