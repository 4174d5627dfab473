"""Chooses the blocks that each device trains: large norms, within budgets, alike if asked."""

from __future__ import annotations

import math
from bisect import insort
from dataclasses import dataclass

import numpy as np

from algorithms.strategy import FleetView, make_plan
from devices.vocabulary.plan import DeviceId, TermGrid, TrainingPlan
from traces.arrays import BoolArray, FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class LayerProblem:
    """The problem is which of L blocks (x_il) each of N devices trains.

    max  sum_il x_il norms_il - consistency sum_l sum_{i<j} (x_il - x_jl)^2
    """

    norms: FloatArray  # (N, L)
    budgets: IntArray  # (N, L): blocks that fit if l is the lowest of them; 0 if none do
    consistency: float  # lambda

    def score(self, chosen: BoolArray) -> float:
        """Return the worth of a choice (N, L)."""
        counts = chosen.sum(axis=0)
        apart = int((counts * (len(chosen) - counts)).sum())
        return float(self.norms[chosen].sum()) - self.consistency * apart

    def own_gains(self, chosen: BoolArray, device: int) -> FloatArray:
        """Return (L,): what each block adds to the score if this device trains it too."""
        num_others = len(chosen) - 1
        alike = chosen.sum(axis=0) - chosen[device]
        gains: FloatArray = self.norms[device] - self.consistency * (num_others - 2 * alike)
        return gains


def plan_of_blocks(
    fleet: FleetView, device_id: DeviceId, chosen: BoolArray, *, rank: int
) -> TrainingPlan:
    """Return the plan that holds all terms, and trains and uploads those of the chosen (L,)."""
    shape = fleet.model.grid_shape(rank)
    trained = np.broadcast_to(chosen[:, None, None], shape)
    bits = np.where(trained, 32, 0).astype(np.uint8)
    return make_plan(fleet, device_id, TermGrid(np.ones(shape, dtype=bool), trained, bits))


def choose_layers(problem: LayerProblem) -> BoolArray:
    """Return (N, L): the blocks that each device trains, at least one where it can train any.

    Exact without the consistency term, where devices do not depend on each other. With it, the best
    of three climbs: from what each device would choose alone, from what it would choose by the mean
    norms, and from the best blocks that all can train, which is exact for a large lambda. A climb
    gives one device after the other its best blocks, the others given, until none moves.
    """
    norms, budgets = problem.norms, problem.budgets
    alone = np.stack([best_blocks(*row) for row in zip(norms, budgets, strict=True)])
    if problem.consistency == 0 or len(norms) == 1:
        return alone
    mean = norms.mean(axis=0)
    common = best_blocks(mean, budgets.min(axis=0))
    starts = [alone, np.stack([best_blocks(mean, row) for row in budgets])]
    if common.any():
        starts.append(np.broadcast_to(common, norms.shape))
    return max((_climb(problem, start) for start in starts), key=problem.score)


def best_blocks(gains: FloatArray, budgets: IntArray) -> BoolArray:
    """Return (L,): the blocks of one device with the most gain; none where no budget allows it.

    For each block that may be the lowest: that one, and the most gainful of those above, as many
    positive ones as the budget holds. Ties go to the fewest crossed blocks. O(L^2).
    """
    above: list[tuple[float, int]] = []  # (-gain, -block) of positive gains, the best first
    best, best_gain = [], -math.inf
    for block in range(len(gains) - 1, -1, -1):
        gain, budget = float(gains[block]), int(budgets[block])
        if budget > 0:
            taken = above[: budget - 1]
            total = gain - math.fsum(negative for negative, _ in taken)
            if total > best_gain:
                best, best_gain = [block, *(-minus for _, minus in taken)], total
        if gain > 0:
            insort(above, (-gain, -block))
    chosen = np.zeros(len(gains), dtype=bool)
    chosen[best] = True
    return chosen


def _climb(problem: LayerProblem, start: BoolArray) -> BoolArray:
    chosen, settled = start.copy(), 0
    while settled < len(chosen):
        for device in range(len(chosen)):
            gains = problem.own_gains(chosen, device)
            better = best_blocks(gains, problem.budgets[device])
            # The gain must exceed rounding errors, or two equal choices would alternate for ever.
            slack = 1e-9 * float(np.abs(gains).sum())
            if gains[better].sum() > gains[chosen[device]].sum() + slack:
                chosen[device], settled = better, 0
            settled += 1
            if settled == len(chosen):
                break
    return chosen
