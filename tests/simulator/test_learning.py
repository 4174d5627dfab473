"""Every scheduler solves a problem whose solution is known, on devices with different budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pytest

from algorithms.registry import STRATEGIES
from algorithms.strategies.ffa_lora import FFALoRA
from algorithms.strategies.flexlora import FlexLoRA
from algorithms.strategies.flora import FLoRA
from algorithms.strategies.zero_padding import ZeroPadding
from devices.fleet.fleet import Device
from devices.models.spec import ModelSpec
from devices.vocabulary.merged import multiplied_out
from devices.vocabulary.plan import Adapter, Factors, ModuleKey
from devices.vocabulary.trainer import (
    Evaluation,
    SalienceMetric,
    Trainer,
    TrainingJob,
    TrainingResult,
)
from simulator.engine.server import Server, simulate
from tests.kinds import FEDERATED, WHOLE
from tests.simulator.small import DriftTrainer, Memory, make_device, make_federation, tiny_model
from tests.torture import some
from traces.arrays import BoolArray, FloatArray

ROUNDS = 40
WITH_GLOBAL = [kind for kind, strategy in STRATEGIES.items() if strategy.has_global_model]
OPTIONS: dict[str, dict[str, Any]] = {
    "fedlora": {"depth": "common"},
    "ffa-lora": {"depth": "common"},
    "fedex-lora": {"depth": "common"},
    "lora-fair": {"depth": "common"},
    "rolora": {"depth": "common"},
    "fedsa-lora": {"depth": "common"},
    "scaffold": {"depth": "common"},
    "haflq": {"upload_s": 1e9, "explore_share": 1.0},
    "fah-qlora": {"min_rank": 2},
}
PADDING = ("zeropad", "hetlora", "fah-qlora")
"""The strategies in which a term settles short of its goal where a device lacks it."""
PRODUCTS = ("flexlora", "flora", "lora-fair")
"""The strategies whose terms are others in each round: what has to arrive is the product."""
SETTLED = 14
"""Rounds after which a term that goes half-way to its goal each time is within 1e-4 of it."""


def mixed_fleet() -> list[Device]:
    """Two are too slow for all terms; the last has room for one trained block, or for a few terms
    in all blocks once their weights are packed."""
    return [
        make_device(0, flops_per_s=4e9),
        make_device(1, flops_per_s=1e9, num_examples=64),
        make_device(2, flops_per_s=4e8, rate_bytes_per_s=1e4),
        make_device(3, flops_per_s=4e8, budget_bytes=330_000),
    ]


def learn(strategy: Any, trainer: Trainer, fleet: Sequence[Device] | None = None) -> Server:
    log = Memory()
    federation = make_federation(
        fleet or mixed_fleet(), strategy=strategy, trainer=trainer, rounds=ROUNDS
    )
    server = simulate(federation, log)
    assert not log.named("oom")
    return server


def times_trained(trainer: DriftTrainer, version: int, by: str) -> BoolArray:
    """Return the terms that ``any`` or ``all`` devices trained in each last round, (L, M, R)."""
    rounds: dict[int, list[BoolArray]] = {}
    for job in trainer.jobs:
        rounds.setdefault(job.broadcast.version, []).append(job.plan.terms.uploaded)
    last = [np.stack(rounds[v]) for v in range(version - SETTLED, version)]
    always: BoolArray = np.all([getattr(np, by)(grids, axis=0) for grids in last], axis=0)
    return always


@pytest.mark.parametrize("kind", some((k for k in FEDERATED if k not in PRODUCTS), 5))
def test_what_is_trained_reaches_its_goal(kind: str) -> None:
    """Noise of 0.01 an update, of which each round forgets half, has a standard deviation of
    0.0115 at most in the end: 0.1 is more than 8 of them."""
    trainer = DriftTrainer()
    make: Any = STRATEGIES[kind]
    server = learn(make(rank=4, **OPTIONS.get(kind, {})), trainer)
    adapter, version = server.state.adapter, server.state.version
    assert version == ROUNDS
    by = "all" if kind in PADDING else "any"
    settled = times_trained(trainer, version, by)
    if kind == "haflq":
        settled = np.ones_like(settled)  # over 40 random rounds every term is trained
    assert settled.mean() >= 0.3
    for key, (a, b) in adapter.factors.items():
        terms = settled[key.block, adapter.modules.index(key.module)]
        if kind != "ffa-lora":  # FFA-LoRA does not train A
            np.testing.assert_allclose(a[terms], trainer.goal, atol=0.1)
        np.testing.assert_allclose(b[:, terms], trainer.goal, atol=0.1)


def test_zero_padding_holds_terms_back_that_some_devices_lack() -> None:
    """A term whose holders have the share c of the examples settles where x = c (x + (1 - x) / 2),
    at c / (2 - c): the dilution that rank-1 merging avoids."""
    trainer = DriftTrainer()
    server = learn(ZeroPadding(rank=4, ranks=(2, 4)), trainer)
    last = [job for job in trainer.jobs if job.broadcast.version == ROUNDS - 1]
    total = sum(len(job.examples) for job in last)
    adapter = server.state.adapter
    share = sum(job.plan.terms.held[0, 0] * len(job.examples) for job in last) / total  # (R,)
    assert 0 < share[-1] < 1 == share[0]
    for factors in adapter.factors.values():
        wanted = np.broadcast_to(share / (2 - share), factors.b.shape)
        np.testing.assert_allclose(factors.b, wanted, atol=0.1)


@dataclass(frozen=True)
class ProductTrainer:
    """This trainer does gradient descent on || scale B A - W ||^2 / 2 over its terms."""

    model: ModelSpec
    goal_rank: int = 2
    learning_rate: float = 0.05

    @cached_property
    def goals(self) -> dict[ModuleKey, FloatArray]:
        """Return a goal W of norm 1 for each layer."""
        rng = np.random.default_rng(7)
        goals = {}
        for block in range(self.model.num_blocks):
            for layer in self.model.targets:
                b = rng.normal(size=(layer.out_features, self.goal_rank))
                w = b @ rng.normal(size=(self.goal_rank, layer.in_features))
                goals[ModuleKey(block, layer.name)] = w / np.linalg.norm(w)
        return goals

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        return [self._result(job) for job in jobs]

    def _result(self, job: TrainingJob) -> TrainingResult:
        old, plan = job.broadcast.adapter, job.plan
        factors = dict(old.factors)
        for key, (a, b) in old.factors.items():
            place = (key.block, old.modules.index(key.module))
            held, trained = plan.terms.held[place], plan.terms.trained[place]
            new_a, new_b = held[:, None] * a.astype(np.float64), held * b.astype(np.float64)
            goal = self.goals[key] - merged_change(old, key)
            for _ in range(20):
                error = old.scale * (old.scale * new_b @ new_a - goal)
                step_a, step_b = new_b.T @ error, error @ new_a.T
                if "a" in plan.terms.trained_factors:
                    new_a -= self.learning_rate * trained[:, None] * step_a
                if "b" in plan.terms.trained_factors:
                    new_b -= self.learning_rate * trained * step_b
            a, b = np.where(trained[:, None], new_a, a), np.where(trained, new_b, b)
            factors[key] = Factors(a.astype(np.float32), b.astype(np.float32))
        return TrainingResult(replace(old, factors=factors), self.distance(old))

    def distances(self, adapter: Adapter) -> FloatArray:
        """Return the distance of each layer to its goal; it is 1 before the first round."""
        return np.array(
            [
                np.linalg.norm(
                    adapter.scale * f.b @ f.a + merged_change(adapter, key) - self.goals[key]
                )
                for key, f in adapter.factors.items()
            ]
        )

    def distance(self, adapter: Adapter) -> float:
        """Return the largest distance of a layer."""
        return float(self.distances(adapter).max())

    def out_of_reach(self, adapter: Adapter) -> FloatArray:
        """Return the least distance of any B with this A: what of W lies outside A's rows."""
        return np.array(
            [
                np.linalg.norm(goal - goal @ np.linalg.pinv(a.astype(np.float64)) @ a)
                for goal, (a, _) in zip(self.goals.values(), adapter.factors.values(), strict=True)
            ]
        )

    def evaluate(self, adapter: Adapter) -> Evaluation:
        return Evaluation({"accuracy": 0.0, "loss": self.distance(adapter)})

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        return np.ones(self.model.num_blocks)

    def block_fisher(self, adapter: Adapter) -> FloatArray:
        return np.ones(self.model.num_blocks)


def merged_change(adapter: Adapter, key: ModuleKey) -> FloatArray:
    """Return what was added to a frozen weight, (out, in)."""
    product = adapter.merged.products.get(key)
    return np.zeros(()) if product is None else adapter.scale * multiplied_out(product)


def test_flexlora_learns_a_product_that_every_device_s_rank_can_hold() -> None:
    """The factors change with every SVD, so that the product is what has to arrive."""
    trainer = ProductTrainer(tiny_model())
    server = learn(FlexLoRA(rank=4, ranks=(2, 4)), trainer, mixed_fleet()[:3])
    assert trainer.distance(server.state.adapter) < 0.01


@pytest.mark.parametrize(("goal_rank", "rank"), [(2, 2), (6, 1)])
def test_flora_learns_a_product_whatever_its_rank_round_by_round(goal_rank: int, rank: int) -> None:
    """The rows of a fresh A span r of 32 directions at random, and the best B for it takes
    r / 32 of the squared distance away on average. That A trains too makes it faster."""
    trainer = ProductTrainer(tiny_model(), goal_rank=goal_rank)
    server = learn(FLoRA(rank=rank, alpha=4.0 * rank, ranks=(rank,)), trainer, mixed_fleet()[:3])
    assert trainer.distance(server.state.adapter) < (1 - rank / 32) ** (ROUNDS / 2)
    if goal_rank > rank:  # no single adapter of that rank could come as near
        tails = [np.linalg.svd(w, compute_uv=False)[rank:] for w in trainer.goals.values()]
        assert trainer.distance(server.state.adapter) < max(map(np.linalg.norm, tails))


def test_ffa_lora_comes_as_near_to_a_product_as_its_fixed_a_allows() -> None:
    trainer = ProductTrainer(tiny_model())
    adapter = learn(FFALoRA(rank=8), trainer, mixed_fleet()[:3]).state.adapter
    assert trainer.distances(adapter) == pytest.approx(trainer.out_of_reach(adapter), rel=0.02)


@pytest.mark.parametrize("kind", some(WITH_GLOBAL, 6))
def test_every_scheduler_solves_a_quadratic(kind: str) -> None:
    """Gradients are exact for the sum over layers of ||scale B A + merged - W||^2 / 2, which no
    device trains all of. Every device's terms can hold W, of rank 2, but for FFA-LoRA's fixed A. Of
    what can be had, 40 rounds of 20 steps leave less than a thousandth."""
    trainer = ProductTrainer(tiny_model())
    fleet = mixed_fleet()[: 3 if kind in WHOLE else 4]
    make: Any = STRATEGIES[kind]
    adapter = learn(make(rank=4, **OPTIONS.get(kind, {})), trainer, fleet).state.adapter
    least = trainer.out_of_reach(adapter) if kind == "ffa-lora" else np.zeros(len(trainer.goals))
    begun, left = np.ones(len(least)), trainer.distances(adapter)
    assert np.sum(left**2 - least**2) <= 1e-3 * np.sum(begun**2 - least**2)
