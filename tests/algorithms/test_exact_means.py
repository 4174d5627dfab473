"""FedEx-LoRA keeps the mean of the products exactly, and LoRA-FAIR comes near it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from algorithms.merging.lora import example_weights
from algorithms.strategies.fedex_lora import FedExLoRA
from algorithms.strategies.lora_fair import LoRAFAIR, ridge, turned
from devices.vocabulary.merged import multiplied_out
from devices.vocabulary.plan import Adapter, ClientUpdate, ModuleKey
from devices.wire.wire import download_bytes, encode_broadcast
from tests.algorithms.haflq_fleets import device, fleet_of
from tests.algorithms.static_fleet import random_adapter, trained_update
from traces.arrays import FloatArray

FLEET = fleet_of([device()] * 4)


def a_round(strategy: Any, state: Any, cohort: range, seed: int) -> tuple[Any, list[ClientUpdate]]:
    """Return plans and updates of some devices, with unequal numbers of examples."""
    rng = np.random.default_rng(seed)
    plans = strategy.plan(state, FLEET, cohort, rng)
    updates = [
        trained_update(plan, strategy.broadcast(state, plan), rng, num_examples=k + 1)
        for k, plan in enumerate(plans)
    ]
    return plans, updates


def start(strategy: Any) -> Any:
    return strategy.init(random_adapter(FLEET.model, strategy.rank, np.random.default_rng(0)))


def weight_of(adapter: Adapter, key: ModuleKey) -> FloatArray:
    """Return what factors and base add to the pretrained weight, without the scale."""
    own = multiplied_out(adapter.factors[key])
    return own + (multiplied_out(adapter.merged.products[key]) if adapter.merged.products else 0.0)


@pytest.mark.parametrize("weights", ["equal", "examples"])
def test_fedex_keeps_the_mean_of_the_models_over_rounds(weights: Any) -> None:
    strategy = FedExLoRA(rank=3, weights=weights)
    state = start(strategy)
    for round_number, cohort in enumerate((range(4), range(2), range(1, 4))):
        _, updates = a_round(strategy, state, cohort, round_number)
        after = strategy.aggregate(state, updates)
        shares = example_weights(updates)
        if weights == "equal":
            shares = np.full(len(updates), 1 / len(updates))
        for key in state.adapter.factors:
            ends = [weight_of(update.adapter, key) for update in updates]
            mean = sum(share * end for share, end in zip(shares, ends, strict=True))
            np.testing.assert_allclose(weight_of(after.adapter, key), mean, atol=2e-5)
            a = sum(s * u.adapter.factors[key].a for s, u in zip(shares, updates, strict=True))
            np.testing.assert_allclose(after.adapter.factors[key].a, a, atol=1e-6)
        assert any(
            np.abs(multiplied_out(p)).max() > 0.01 for p in after.adapter.merged.products.values()
        )
        state = after


def test_fedex_charges_a_device_for_the_residuals_that_it_missed() -> None:
    """Every message is as long as the clock charges; one who was there last downloads less."""
    strategy = FedExLoRA(rank=1)
    state = start(strategy)
    for round_number in range(3):
        _, updates = a_round(strategy, state, range(2), round_number)
        state = strategy.aggregate(state, updates)
    plans, _ = a_round(strategy, state, range(4), 9)
    lengths = []
    for plan in plans:
        message = encode_broadcast(strategy.broadcast(state, plan), plan=plan)
        assert len(message) == download_bytes(FLEET.model, plan)
        lengths.append(len(message))
    assert lengths[0] == lengths[1] < lengths[2] == lengths[3]


def test_ridge_is_the_minimum_of_the_penalised_distance() -> None:
    rng = np.random.default_rng(0)
    left, a = rng.normal(size=(6, 5)), rng.normal(size=(3, 5))

    def loss(change: FloatArray) -> float:
        return float(np.square(left - change @ a).sum() + 0.1 * np.square(change).sum())

    best = ridge(left, a, 0.1)
    for _ in range(50):
        assert loss(best) < loss(best + 0.01 * rng.normal(size=best.shape))
    exact = rng.normal(size=(6, 3))
    np.testing.assert_allclose(ridge(exact @ a, a, 0.0), exact, atol=1e-9)


def test_the_descent_turns_the_product_toward_the_wanted_one() -> None:
    rng = np.random.default_rng(1)
    wanted, a, b = rng.normal(size=(6, 5)), rng.normal(size=(3, 5)), rng.normal(size=(6, 3))

    def cosine(change: FloatArray) -> float:
        product = (b + change) @ a
        return float(np.vdot(wanted, product) / np.linalg.norm(wanted) / np.linalg.norm(product))

    ends = [turned(wanted, a, b, weight=0.0, steps=n, rate=0.1) for n in (1, 100, 3000)]
    angles = [cosine(np.zeros(b.shape)), *map(cosine, ends)]
    assert angles == sorted(angles)
    within_reach = wanted @ np.linalg.pinv(a) @ a  # what some B times A can be
    best = np.linalg.norm(within_reach) / np.linalg.norm(wanted)
    assert angles[-1] == pytest.approx(best, rel=1e-3)
    assert not turned(np.zeros((6, 5)), a, b, weight=0.1, steps=5, rate=0.1).any()


@pytest.mark.parametrize("distance", ["cosine", "frobenius"])
def test_fair_is_nearer_to_the_mean_of_the_products_than_the_product_of_the_means(
    distance: Any,
) -> None:
    strategy = LoRAFAIR(rank=3, distance=distance)
    state = start(strategy)
    _, updates = a_round(strategy, state, range(4), 0)
    after = strategy.aggregate(state, updates).adapter
    shares = example_weights(updates)
    for key, (a, b) in after.factors.items():
        ends = [update.adapter.factors[key] for update in updates]
        wanted = np.einsum("k,koi->oi", shares, [multiplied_out(end) for end in ends])
        mean_b = np.einsum("k,kor->or", shares, [end.b for end in ends])
        np.testing.assert_allclose(
            a, np.einsum("k,kri->ri", shares, [e.a for e in ends]), atol=1e-6
        )

        def apart(b: Any, wanted: FloatArray = wanted, a: Any = a) -> float:
            product = b.astype(np.float64) @ a
            if distance == "frobenius":
                return float(np.linalg.norm(wanted - product))
            both = np.linalg.norm(wanted) * np.linalg.norm(product)
            return 1 - float(np.vdot(wanted, product) / both)

        assert apart(b) < apart(mean_b)


def test_fair_leaves_blocks_alone_that_nobody_trained() -> None:
    strategy = LoRAFAIR(rank=3, depth=1)
    state = start(strategy)
    _, updates = a_round(strategy, state, range(4), 0)
    after = strategy.aggregate(state, updates).adapter
    for key, factors in after.factors.items():
        same = np.array_equal(factors.b, state.adapter.factors[key].b)
        assert same == (key.block < FLEET.model.num_blocks - 1)
