"""From arrivals to updates: train what will be aggregated, and pass it through the wire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from algorithms.lora import WeightsError, rebase
from algorithms.strategy import ServerState
from devices import wire
from devices.plan import Broadcast, ClientUpdate
from devices.trainer import TrainingJob
from simulator.client import Assignment
from simulator.federation import Federation
from simulator.invariants import InvariantError, check_adapter


def collect(
    federation: Federation, state: ServerState[Any], arrived: Sequence[Assignment]
) -> list[ClientUpdate]:
    """The updates that arrived, in order of device, as the server decodes them.

    Real gradients, in no simulated time, only for what will be aggregated. An update that started
    from an older model is brought up to date.
    """
    arrived = sorted(arrived, key=lambda work: work.plan.device_id)
    jobs = [
        TrainingJob(work.plan, work.broadcast, work.device.examples, work.training_seed)
        for work in arrived
    ]
    updates = []
    for work, result in zip(arrived, federation.trainer.train(jobs), strict=True):
        work.record.train_loss = result.train_loss
        rng = np.random.default_rng(work.wire_seed)
        start = work.broadcast.adapter
        message = wire.encode_update(result.adapter, start, plan=work.plan, rng=rng)
        assert len(message) == work.cost.upload_bytes, "the clock charged another size"
        update = ClientUpdate(
            plan=work.plan,
            broadcast=work.broadcast,
            adapter=wire.decode_update(message, start, plan=work.plan),
            num_examples=len(work.device.examples),
            train_loss=result.train_loss,
            timing=work.timing,
            squared_loss=result.squared_loss,
        )
        updates.append(_brought_up_to_date(federation, state, update, work))
    return updates


def merge(
    federation: Federation, state: ServerState[Any], updates: Sequence[ClientUpdate], *, where: str
) -> ServerState[Any]:
    """The state after the strategy has aggregated; the same where there is nothing to aggregate.

    Raises InvariantError where the weights are those of no average, or the result is not finite.
    """
    if not updates:
        return state
    try:
        after = federation.strategy.aggregate(state, updates)
    except WeightsError as error:
        raise InvariantError(f"{error}; {where}") from None
    if after.version != state.version + 1:
        raise InvariantError(
            f"an aggregation must make one new version of version {state.version}, "
            f"got {after.version}; {where}"
        )
    check_adapter(after.adapter, where)
    return after


def _brought_up_to_date(
    federation: Federation, state: ServerState[Any], update: ClientUpdate, work: Assignment
) -> ClientUpdate:
    """The update as if it had started from the model as it is now."""
    staleness = state.version - update.broadcast.version
    work.record.staleness = staleness
    share = federation.pacing.mixing(staleness)
    if staleness == 0 and share == 1.0:
        return update
    return rebase(update, Broadcast(state.version, state.adapter), share)
