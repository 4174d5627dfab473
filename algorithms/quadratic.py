"""Trains adapters by exact gradients on a quadratic whose solution is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from algorithms.static_fleet import StaticFleet, lasting, update_with
from algorithms.strategy import ServerState
from devices.models.spec import ModelSpec
from devices.vocabulary.merged import multiplied_out
from devices.vocabulary.plan import Adapter, ClientUpdate, Factors, ModuleKey, Timing, TrainingPlan
from traces.arrays import FloatArray


def change_of(adapter: Adapter, key: ModuleKey) -> FloatArray:
    """Return (out, in): how far one layer's weight is from the pretrained one."""
    change = adapter.scale * multiplied_out(adapter.factors[key])
    if key in adapter.merged.products:
        change = change + adapter.scale * multiplied_out(adapter.merged.products[key])
    return np.asarray(change, dtype=np.float64)


def known_solution(model: ModelSpec) -> dict[ModuleKey, FloatArray]:
    """Return the solution: for each layer a change of rank 1 and norm 1."""
    rng = np.random.default_rng(7)
    goals = {}
    for block in range(model.num_blocks):
        for layer in model.targets:
            goal = np.outer(rng.normal(size=layer.out_features), rng.normal(size=layer.in_features))
            goals[ModuleKey(block, layer.name)] = goal / np.linalg.norm(goal)
    return goals


def distance(adapter: Adapter, goals: Mapping[ModuleKey, FloatArray]) -> float:
    """Return the root of the summed squared distances of all layers to their goals."""
    gaps = [np.linalg.norm(change_of(adapter, key) - goal) for key, goal in goals.items()]
    return float(np.linalg.norm(gaps))


def trained_on(
    strategy: Any,
    state: ServerState[Any],
    plan: TrainingPlan,
    fleet: StaticFleet,
    goals: Mapping[ModuleKey, FloatArray],
) -> ClientUpdate:
    """Return an update after 20 steps on ||scale B A + merged - goal||^2 / 2 by trained terms."""
    broadcast = strategy.broadcast(state, plan)
    old, terms = broadcast.adapter, plan.terms
    factors = {}
    for key, (a, b) in old.factors.items():
        place = (key.block, old.modules.index(key.module))
        held, trained = terms.held[place], terms.trained[place]
        new_a, new_b = held[:, None] * a.astype(np.float64), held * b.astype(np.float64)
        goal = goals[key]
        if key in old.merged.products:
            goal = goal - old.scale * multiplied_out(old.merged.products[key])
        for _ in range(20):
            error = old.scale * (old.scale * new_b @ new_a - goal)
            step_a, step_b = new_b.T @ error, error @ new_a.T
            if "a" in terms.trained_factors:
                new_a -= 0.05 * trained[:, None] * step_a
            if "b" in terms.trained_factors:
                new_b -= 0.05 * trained * step_b
        sent = lasting(terms)[place]
        a, b = np.where(sent[:, None], new_a, a), np.where(sent, new_b, b)
        factors[key] = Factors(a.astype(np.float32), b.astype(np.float32))
    return update_with(
        replace(old, factors=factors),
        plan,
        broadcast,
        num_examples=fleet.num_examples(plan.device_id),
        timing=Timing(1.0, 2.0, 1.0),
    )
