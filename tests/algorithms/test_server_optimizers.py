"""Server optimizers agree with numbers worked out by hand, and run under every strategy of a
mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np
import pytest

from algorithms.merging.server_optimizers import (
    FedAdagrad,
    FedAdam,
    FedAvgM,
    FedYogi,
    ServerOptimizer,
    WithServerOptimizer,
)
from algorithms.registry import SERVER_OPTIMIZERS, STRATEGIES
from algorithms.static_fleet import StaticFleet, spoil
from algorithms.strategies.fedlora import FedLoRA
from devices.vocabulary.plan import Adapter
from tests.algorithms.test_every_strategy import a_round
from traces.arrays import FloatArray

MEANS = [kind for kind, strategy in STRATEGIES.items() if strategy.is_mean]
TAU = 1e-3


def steps(optimizer: ServerOptimizer, changes: Sequence[float]) -> list[float]:
    moments, added = optimizer.start((1,)), []
    for change in changes:
        step, moments = optimizer.step(np.array([change]), moments)
        added.append(float(step[0]))
    return added


def test_every_optimizer_steps_as_worked_out_by_hand() -> None:
    """The changes are 1, then -2; the second moments are written in the roots."""
    changes = (1.0, -2.0)
    assert steps(FedAvgM(), changes) == pytest.approx([1.0, 0.9 - 2.0])
    assert steps(FedAvgM(learning_rate=0.5, momentum=0.0), changes) == pytest.approx([0.5, -1.0])
    adam = [0.01 * 0.1 / (sqrt(0.01000099) + TAU), 0.01 * -0.11 / (sqrt(0.0499009801) + TAU)]
    assert steps(FedAdam(), changes) == pytest.approx(adam)
    yogi = [0.01 * 0.1 / (sqrt(0.010001) + TAU), 0.01 * -0.11 / (sqrt(0.050001) + TAU)]
    assert steps(FedYogi(), changes) == pytest.approx(yogi)
    adagrad = [0.01 / (sqrt(1.000001) + TAU), 0.01 * -2 / (sqrt(5.000001) + TAU)]
    assert steps(FedAdagrad(), changes) == pytest.approx(adagrad)


def test_yogi_s_second_moment_falls_where_the_square_is_smaller() -> None:
    optimizer = FedYogi(tau=2.0)
    _, moments = optimizer.step(np.array([1.0]), optimizer.start((1,)))
    assert moments.second[0] == pytest.approx(4.0 - 0.01)


def test_a_state_keeps_the_size_of_the_fleet() -> None:
    adapter, strategy = Adapter({}, {}, 1.0), WithServerOptimizer(FedLoRA(), FedAvgM())
    state = replace(strategy.init(adapter), num_devices=7)
    assert state.advance(adapter, state.memory).num_devices == 7
    assert strategy.inner(state).num_devices == 7


def test_the_defaults_are_the_paper_s() -> None:
    assert (FedAdam().beta_1, FedAdam().beta_2, FedAdam().tau) == (0.9, 0.99, 1e-3)
    assert (FedYogi().beta_1, FedYogi().beta_2, FedAdagrad().beta_1) == (0.9, 0.99, 0.0)
    with pytest.raises(ValueError, match=r"beta_2 must be in \[0, 1\), got 1"):
        FedAdam(beta_2=1.0)


@pytest.mark.parametrize("kind", MEANS)
def test_fedavgm_without_momentum_is_the_strategy_itself(kind: str, mixed: StaticFleet) -> None:
    strategy, state, updates = a_round(kind, mixed)
    plain = strategy.aggregate(state, updates)
    wrapped = WithServerOptimizer(strategy, FedAvgM(momentum=0.0))
    after = wrapped.aggregate(wrapped.init(state.adapter), updates)
    assert after.version == 1
    for key, factors in plain.adapter.factors.items():
        np.testing.assert_allclose(after.adapter.factors[key].a, factors.a, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(after.adapter.factors[key].b, factors.b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", MEANS)
@pytest.mark.parametrize("name", SERVER_OPTIMIZERS)
def test_terms_that_nobody_sent_stay_and_what_stands_in_them_reaches_nothing(
    kind: str, name: str, mixed: StaticFleet
) -> None:
    strategy, state, updates = a_round(kind, mixed)
    wrapped: Any = WithServerOptimizer(strategy, SERVER_OPTIMIZERS[name]())
    first = wrapped.aggregate(wrapped.init(state.adapter), updates)
    some = updates[:1]  # terms that nobody sends now are not moved by moments of the first round
    spoiled = [replace(u, adapter=spoil(u.adapter, u.plan)) for u in some]
    second, dirty = wrapped.aggregate(first, some), wrapped.aggregate(first, spoiled)
    assert second.adapter.digest == dirty.adapter.digest
    sent = some[0].plan.terms.uploaded
    for key, factors in second.adapter.factors.items():
        kept = ~sent[key.block, second.adapter.modules.index(key.module)]
        np.testing.assert_array_equal(factors.b[:, kept], first.adapter.factors[key].b[:, kept])
    assert second.adapter.digest != first.adapter.digest


def test_momentum_goes_on_over_rounds_in_factors_and_head(mixed: StaticFleet) -> None:
    """The same change d in two rounds moves the model by d and then by 1.5 d."""
    strategy, state, updates = a_round("fedlora", mixed)
    assert isinstance(strategy, FedLoRA)
    wrapped = WithServerOptimizer(strategy, FedAvgM(momentum=0.5))
    start = wrapped.init(state.adapter)
    once = wrapped.aggregate(start, updates)

    def changed(name: str) -> FloatArray:
        return once.adapter.head[name].astype(np.float64) - state.adapter.head[name]

    again = [
        replace(
            update,
            adapter=replace(
                update.adapter,
                head={
                    n: (once.adapter.head[n] + changed(n)).astype(np.float32)
                    for n in update.adapter.head
                },
            ),
        )
        for update in updates
    ]
    twice = wrapped.aggregate(once, again)
    for name, values in twice.adapter.head.items():
        np.testing.assert_allclose(
            values, once.adapter.head[name] + 1.5 * changed(name), rtol=1e-5, atol=1e-6
        )
