"""Searches the depth that each device trains, on a table of round times.

``round_s`` is (N, L) throughout: the seconds that a round of device i takes at depth d, in column
d - 1, and inf where the device cannot hold that depth. Depths are (N,), from 1 to L.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from traces.arrays import FloatArray, IntArray

SLACK = 1e-9
"""Shares of examples that differ by less than this count as equal, since sums are rounded."""


@dataclass(frozen=True, eq=False)
class DepthProblem:
    """The problem is to choose a depth of 1 to L blocks for each of N devices.

    A choice is (N,) depths. It is worth its gain per second of round and of waiting:

        sum_i weights_i G(d_i) / (T + wait_weight W),   T = max_i T_i,   W = mean_i (T - T_i)
    """

    round_s: FloatArray  # (N, L)
    depth_gains: FloatArray  # (L,): G(1) to G(L), rising
    weights: FloatArray  # (N,): shares of the examples, in sum 1
    wait_weight: float

    def score(self, depths: IntArray) -> float:
        """Return the worth of a choice."""
        taken_s = self.round_s[np.arange(len(depths)), depths - 1]
        gain = self.weights @ self.depth_gains[depths - 1]
        return float(gain / self.price_s(taken_s.max(), taken_s.mean()))

    def price_s(self, slowest_s: FloatArray, mean_s: FloatArray) -> FloatArray:
        """Return the seconds that a choice costs: T + wait_weight W."""
        return slowest_s + self.wait_weight * (slowest_s - mean_s)


def undominated(round_s: FloatArray) -> FloatArray:
    """Return ``round_s`` with inf wherever a greater depth takes no longer."""
    quickest_from = np.minimum.accumulate(round_s[:, ::-1], axis=1)[:, ::-1]
    kept = round_s.copy()
    kept[:, :-1][quickest_from[:, 1:] <= round_s[:, :-1]] = math.inf
    return kept


def deepest_within(round_s: FloatArray, limit_s: float) -> IntArray:
    """Return (N,): the greatest depth that takes at most ``limit_s``; 0 where none does."""
    depths = np.arange(1, round_s.shape[1] + 1)
    chosen: IntArray = np.where(round_s <= limit_s, depths, 0).max(axis=1)
    return chosen


def sweep(problem: DepthProblem) -> IntArray:
    """Return (N,): the best of the choices in which all go as deep as a time tau allows.

    Optimal over all choices where round times rise with depth: with the slowest device given, going
    deeper within its time raises the gain and lowers the waiting. Ties go to the smaller tau.
    O(N L log(N L)): the picks change one device at a time as tau rises, so running sums suffice.
    """
    round_s = problem.round_s
    order = np.argsort(round_s, axis=1, kind="stable")
    at_s = np.take_along_axis(round_s, order, axis=1)  # (N, L): tau at which a depth opens
    deepest = np.maximum.accumulate(order, axis=1)  # (N, L): depth - 1 that is chosen from that tau
    is_open = np.isfinite(at_s)
    taken_s = np.where(is_open, np.take_along_axis(round_s, deepest, axis=1), 0.0)
    gained = problem.weights[:, None] * problem.depth_gains[deepest]

    events = np.argsort(at_s, axis=None, kind="stable")[: is_open.sum()]  # inf sorts last
    tau_s = at_s.ravel()[events]
    gain = np.diff(gained, axis=1, prepend=0.0).ravel()[events].cumsum()
    total_s = np.diff(taken_s, axis=1, prepend=0.0).ravel()[events].cumsum()
    slowest_s = np.maximum.accumulate(taken_s.ravel()[events])
    score = gain / problem.price_s(slowest_s, total_s / len(round_s))

    # Of equal tau the last event counts: only then are all depths included that open at this tau.
    is_last = np.append(tau_s[1:] > tau_s[:-1], True)
    score[~is_last | (tau_s < pace_of_slowest(round_s))] = -math.inf
    return deepest_within(round_s, float(tau_s[score.argmax()]))


def pace_of_slowest(round_s: FloatArray) -> float:
    """Return the seconds below which some device can do nothing at all."""
    return float(round_s.min(axis=1).max())


def climb(problem: DepthProblem) -> IntArray:
    """Return (N,) depths: from all quickest ones, one device at a time is deepened.

    Each step takes the device with the most gain per second that it adds to round and waiting; the
    best choice on the way is kept. O(N^2 L).
    """
    round_s, rows = problem.round_s, np.arange(len(problem.round_s))
    deeper = _next_depth(round_s)
    depths: IntArray = round_s.argmin(axis=1) + 1
    best, best_score = depths.copy(), problem.score(depths)
    while (able := np.flatnonzero(deeper[rows, depths - 1])).size:
        now_s = round_s[rows, depths - 1]
        after = deeper[able, depths[able] - 1]
        after_s = round_s[able, after - 1]
        mean_s = (now_s.sum() - now_s[able] + after_s) / len(rows)
        then_s = problem.price_s(np.maximum(now_s.max(), after_s), mean_s)
        added_s = then_s - problem.price_s(now_s.max(), now_s.mean())
        gains = problem.depth_gains
        added = problem.weights[able] * (gains[after - 1] - gains[depths[able] - 1])
        rate = np.divide(added, added_s, out=np.full(len(able), math.inf), where=added_s > 0)
        raised = int(rate.argmax())
        depths[able[raised]] = after[raised]
        if (score := problem.score(depths)) > best_score:
            best, best_score = depths.copy(), score
    return best


def _next_depth(round_s: FloatArray) -> IntArray:
    """Return (N, L): the next greater depth that a device can hold; 0 where there is none."""
    num_blocks = round_s.shape[1]
    held = np.where(np.isfinite(round_s), np.arange(1, num_blocks + 1), num_blocks + 1)
    following = np.minimum.accumulate(held[:, ::-1], axis=1)[:, ::-1]
    following = np.append(following[:, 1:], np.full((len(held), 1), num_blocks + 1), axis=1)
    next_depth: IntArray = np.where(following > num_blocks, 0, following)
    return next_depth


def draw(round_s: FloatArray, rng: np.random.Generator) -> IntArray:
    """Return (N,): a depth for each device, drawn uniformly from those that it can hold."""
    lots = rng.random(round_s.shape)
    depths: IntArray = np.where(np.isfinite(round_s), lots, -1.0).argmax(axis=1) + 1
    return depths


def deepest_common(round_s: FloatArray) -> IntArray:
    """Return (N,): the greatest depth that all devices can hold; 0 where there is none."""
    is_common = np.isfinite(round_s).all(axis=0)
    depth = int(np.flatnonzero(is_common)[-1]) + 1 if is_common.any() else 0
    return np.full(len(round_s), depth)


def cover(problem: DepthProblem, depths: IntArray, due: IntArray, share: float) -> IntArray:
    """Return (N,): ``depths`` deepened until ``share`` of the examples reach each due depth.

    ``due`` is (K,), the depths that must be reached. Everybody goes as deep as the least time
    allows at which that is so. A due depth that devices with less than ``share`` of the examples
    can hold waits for another cohort.
    """
    limits_s = [_time_to_cover(problem, int(depth), share) for depth in due]
    limit_s = max((s for s in limits_s if math.isfinite(s)), default=0.0)
    return np.maximum(depths, deepest_within(problem.round_s, limit_s))


def at_least(round_s: FloatArray, share: float) -> IntArray:
    """Return (N,): the least depth that a device can hold at or above a share of its greatest."""
    is_held = np.isfinite(round_s)
    depths = np.arange(1, round_s.shape[1] + 1)
    greatest = np.where(is_held, depths, 0).max(axis=1)
    is_enough = is_held & (depths >= (share * greatest - SLACK)[:, None])
    least: IntArray = is_enough.argmax(axis=1) + 1
    return least


def near(round_s: FloatArray, depths: IntArray, last: IntArray, most: int) -> IntArray:
    """Return (N,): for each device the depth nearest to ``depths`` within ``most`` of ``last``.

    Where a device has no last depth (0), or holds none so near, its depth is as it was.
    """
    every = np.arange(1, round_s.shape[1] + 1)
    is_near = np.isfinite(round_s) & (np.abs(every - last[:, None]) <= most)
    distance = np.where(is_near, np.abs(every - depths[:, None]), round_s.shape[1])
    is_bound = (last > 0) & is_near.any(axis=1)
    nearest: IntArray = np.where(is_bound, distance.argmin(axis=1) + 1, depths)
    return nearest


def _time_to_cover(problem: DepthProblem, depth: int, share: float) -> float:
    """Return the least time at which ``share`` of the examples train ``depth`` blocks."""
    reach_s = problem.round_s[:, depth - 1 :].min(axis=1)
    order = np.argsort(reach_s, kind="stable")
    covered = problem.weights[order].cumsum()
    enough = min(int(np.searchsorted(covered, share - SLACK)), len(order) - 1)
    return float(reach_s[order[enough]])
