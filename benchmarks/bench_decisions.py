"""Measures the CPU seconds that a server takes to plan for a large fleet: whole calls of ``plan``.

python benchmarks/bench_decisions.py [devices] [blocks] [runs]

FedQuad decides depths; HAFLQ which of 64 terms of each module are trained, their bits on the wire,
and the bits of the blocks in memory. Each run starts from a fleet of which nothing has been costed.
``first`` is the decision before any update; ``later`` the one after a round of which FedQuad has
seen all devices and HAFLQ, for which their number does not matter, a few; links are measured anew.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from algorithms.strategies.fedquad import FedQuad
from algorithms.strategies.haflq import HAFLQ
from algorithms.strategy import LinkRate, ServerState, Strategy
from devices.cost.closed_form import ClosedFormCost
from devices.fleet.catalog import load_profiles
from devices.fleet.fleet import Device, Fleet
from devices.models.spec import ModelSpec
from devices.tasks.classification import Classification
from devices.vocabulary.plan import Adapter, Broadcast, ClientUpdate, Factors, Timing, TrainingPlan
from devices.vocabulary.trainer import NullTrainer
from simulator.config.schema import LocalWork
from simulator.engine.conditions import Conditions
from simulator.engine.faults import no_faults
from simulator.engine.network import NOTHING_SHARED
from simulator.engine.server_view import ServerView
from traces.bandwidth import BandwidthTrace, Link

ROBERTA = {
    "model_type": "roberta",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "vocab_size": 50265,
    "max_position_embeddings": 514,
}
FEW = 10


def random_fleet(model: ModelSpec, num_devices: int, *, least_bytes: float) -> ServerView:
    """Return a fleet of all catalog profiles, whose devices differ in memory, shard and link."""
    rng = np.random.default_rng(0)
    profiles = list(load_profiles().values())
    fleet = []
    for device_id in range(num_devices):
        down, up = (BandwidthTrace.constant(rate) for rate in rng.uniform(1e5, 4e6, 2))
        fleet.append(
            Device(
                device_id=device_id,
                profile=profiles[device_id % len(profiles)],
                memory_budget_bytes=int(rng.uniform(least_bytes, 7.5e9)),
                link=Link("constant", down, up),
                shard=partial(np.arange, rng.integers(50, 550)),
            )
        )
    world = Conditions(
        model=model,
        metrics=Classification.metrics,
        fleet=Fleet.of(fleet),
        faults=no_faults(num_devices),
        shared_links=NOTHING_SHARED,
        cost_model=ClosedFormCost(model, sequence_length=128),
    )
    work = LocalWork(batch_size=16, steps=None, epochs=1.0)
    return ServerView(world, work, NullTrainer(model.num_blocks))


def after_a_round(
    strategy: Strategy[Any],
    state: ServerState[Any],
    fleet: ServerView,
    plans: Sequence[TrainingPlan],
) -> ServerState[Any]:
    """Return the state after devices have sent the same adapter, each in a time of its own."""
    rng = np.random.default_rng(1)
    moved = Adapter(
        {
            key: Factors(*(f + rng.normal(0, 0.01, f.shape).astype(np.float32) for f in factors))
            for key, factors in state.adapter.factors.items()
        },
        state.adapter.head,
        state.adapter.scale,
    )
    for plan in plans:
        fleet.measured(plan.device_id, LinkRate(*rng.uniform(1e5, 4e6, 2)))
    senders = plans if isinstance(strategy, FedQuad) else plans[:FEW]
    updates = [
        ClientUpdate(
            plan=plan,
            broadcast=Broadcast(state.version, state.adapter),
            adapter=moved,
            num_examples=fleet.num_examples(plan.device_id),
            train_loss=1.0,
            timing=Timing(*rng.uniform(1.0, 60.0, 3)),
        )
        for plan in senders
    ]
    return strategy.aggregate(state, updates)


def decisions_s(
    strategy: Strategy[Any], model: ModelSpec, fleet: ServerView
) -> tuple[float, float, int]:
    """Return the CPU seconds of a first plan and of one after a round, and the number of plans."""
    rng = np.random.default_rng(0)
    state = strategy.init(model.initial_adapter(strategy.rank, strategy.alpha, rng))
    seconds: list[float] = []
    plans: Sequence[TrainingPlan] = ()
    for _ in range(2):
        begun = time.process_time()
        plans = strategy.plan(state, fleet, fleet.device_ids, rng)
        seconds.append(time.process_time() - begun)
        state = after_a_round(strategy, state, fleet, plans)
    return seconds[0], seconds[1], len(plans)


def main(num_devices: int = 1000, num_blocks: int = 24, num_runs: int = 7) -> None:
    """Print the median and range of several runs."""
    config = {**ROBERTA, "num_hidden_layers": num_blocks}
    model = ModelSpec.from_config("roberta-large", config, ["query", "value"], 4)
    for strategy, least_bytes in (
        (FedQuad(), 1.5e9),  # some devices hold no block, and most must pack activations
        (HAFLQ(rank=64, term_budgets=(16, 32, 64)), 4e9),  # nearly all devices hold some terms
    ):
        runs = []
        for _ in range(num_runs):
            fleet = random_fleet(model, num_devices, least_bytes=least_bytes)
            runs.append(decisions_s(strategy, model, fleet))
        for name, column in (("first", 0), ("later", 1)):
            taken_s = [run[column] for run in runs]
            print(
                f"{strategy.kind}, {name} decision for {num_devices} devices and {num_blocks} "
                f"blocks: {np.median(taken_s):.3f} s ({min(taken_s):.3f} to {max(taken_s):.3f}, "
                f"{num_runs} runs), {runs[0][2]} plans"
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
