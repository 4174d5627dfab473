"""HetLoRA's regulariser has the right gradient, and shrinks the tail."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from algorithms.strategies.hetlora import HetLoRA, rank_of, tail_score
from devices.training.adapters import load_adapter
from devices.training.model import ADAPTER
from devices.training.penalties import tail_penalty
from devices.training.trainer import TorchTrainer
from devices.vocabulary.plan import Adapter, ClientUpdate, Factors, ModuleKey, TailPenalty, TermGrid
from devices.vocabulary.trainer import TrainingJob
from tests.devices.training.tiny_task import make_job, random_adapter
from traces.arrays import FloatArray

SHAPE = (2, 2, 4)  # blocks, modules, terms of `tiny` at rank 4


def first_terms(num_terms: int) -> TermGrid:
    held = np.broadcast_to(np.arange(4) < num_terms, SHAPE)
    return TermGrid(held, held, np.where(held, 32, 0).astype(np.uint8))


def penalty_of(a: FloatArray, b: FloatArray, penalty: TailPenalty, stop: int) -> float:
    """Return the penalty in float64 by its definition."""
    tail = slice(penalty.first_term, stop)
    norms = np.sqrt((b[:, tail] ** 2).sum()) * np.sqrt((a[tail] ** 2).sum())
    return float(penalty.weight * norms)


@pytest.mark.parametrize(("held", "first"), [(4, 3), (4, 1), (3, 2)])
def test_the_gradient_is_that_of_finite_differences_in_float64(
    tiny: TorchTrainer, held: int, first: int
) -> None:
    adapter, penalty = random_adapter(tiny), TailPenalty(0.7, first)
    loaded = load_adapter(tiny._model, adapter, first_terms(held))
    value = tail_penalty(loaded, penalty)
    value.backward()
    wanted = 0.0
    rng = np.random.default_rng(0)
    for key, layer in tiny._model.lora_layers.items():
        a, b = (factor.astype(np.float64) for factor in adapter.factors[key])
        wanted += penalty_of(a, b, penalty, held)
        da, db = rng.normal(size=a.shape), rng.normal(size=b.shape)
        da[held:], db[:, held:] = 0, 0
        step = 1e-6
        ahead, behind = (
            penalty_of(a + sign * step * da, b + sign * step * db, penalty, held)
            for sign in (1, -1)
        )
        got_a = layer.lora_A[ADAPTER].trained.grad.double().numpy()
        got_b = layer.lora_B[ADAPTER].trained.grad.double().numpy()
        assert not got_a[:first].any()  # terms before the tail
        assert not got_b[:, :first].any()
        slope = (got_a * da[:held]).sum() + (got_b * db[:, :held]).sum()
        assert slope == pytest.approx((ahead - behind) / (2 * step), rel=1e-4)
        assert slope != 0
    assert value.item() == pytest.approx(wanted, rel=1e-5)


def test_before_the_first_step_it_is_zero_with_a_gradient_of_zero(tiny: TorchTrainer) -> None:
    start = tiny.spec.initial_adapter(4, 8.0, np.random.default_rng(0))
    value = tail_penalty(load_adapter(tiny._model, start, first_terms(4)), TailPenalty(1.0, 2))
    value.backward()
    assert value.item() == 0
    for layer in tiny._model.lora_layers.values():
        assert not layer.lora_A[ADAPTER].trained.grad.any()
        assert not layer.lora_B[ADAPTER].trained.grad.any()


def trained(tiny: TorchTrainer, penalty: TailPenalty | None) -> Adapter:
    job = make_job(tiny, terms=first_terms(4), steps=6)
    plan = replace(job.plan, tail_penalty=penalty)
    return tiny.train([replace(job, plan=plan)])[0].adapter


def test_a_heavier_penalty_leaves_a_smaller_tail(tiny: TorchTrainer) -> None:
    scores = [
        tail_score(trained(tiny, TailPenalty(weight, 3) if weight else None), 3, 4)
        for weight in (0.0, 0.1, 10.0)
    ]
    assert scores[0] > scores[1] > scores[2]


def test_a_penalty_of_no_weight_changes_no_bit(tiny: TorchTrainer) -> None:
    assert trained(tiny, TailPenalty(0.0, 3)).digest == trained(tiny, None).digest


def with_small_tail(adapter: Adapter) -> Adapter:
    """Return the adapter with a last term that adds next to nothing, but is there."""
    factors: dict[ModuleKey, Factors] = {}
    for key, (a, b) in adapter.factors.items():
        small = np.where(np.arange(4) == 3, 0.1, 1.0).astype(np.float32)
        factors[key] = Factors(a, b * small)
    return replace(adapter, factors=factors)


def num_pruned(tiny: TorchTrainer, strategy: HetLoRA) -> int:
    """Return how many of eight devices pruned after one round from the same start."""
    start = with_small_tail(random_adapter(tiny))
    state = strategy.init(start)
    first = strategy._kept(4)
    updates = []
    for device_id in range(8):
        job = make_job(tiny, adapter=start, terms=first_terms(4), steps=3, seed=device_id)
        penalty = TailPenalty(strategy.tail_penalty, first)
        plan = replace(job.plan, device_id=device_id, tail_penalty=penalty)
        result = tiny.train([TrainingJob(plan, job.broadcast, job.examples, job.seed)])[0]
        updates.append(ClientUpdate(plan, job.broadcast, result.adapter, 10, result.train_loss))
    after = strategy.aggregate(state, updates)
    assert all(rank < rank_of(updates[0].plan) for rank in after.memory.values())
    return len(after.memory)


def test_more_tails_are_pruned_with_it(tiny: TorchTrainer) -> None:
    pruned = [
        num_pruned(tiny, HetLoRA(rank=4, tail_penalty=weight)) for weight in (0.0, 0.001, 10.0)
    ]
    assert pruned[0] <= pruned[1] <= pruned[2]
    assert pruned[0] < pruned[2] == 8
