"""Trains what arrived, decodes it, and lets the strategy merge it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from algorithms.merging.lora import WeightsError
from algorithms.merging.staleness import up_to_date
from algorithms.strategy import ServerState
from devices.vocabulary.plan import ClientUpdate, DeviceId
from devices.vocabulary.trainer import TrainingError, TrainingJob, TrainingResult
from devices.wire.wire import upload_bytes
from simulator.engine.assignment import Assignment
from simulator.engine.delivery import RefusedUpdateError, attack_of, received, sent, update_of
from simulator.engine.federation import Federation
from simulator.log.checked import InvariantError, check_adapter


class Collected(NamedTuple):
    """Collected updates are those that arrived, divided into those to merge and those refused."""

    updates: list[ClientUpdate]
    refused: list[tuple[DeviceId, str]]  # each device whose update was refused, with the reason


def collect(
    federation: Federation, state: ServerState[Any], arrived: Sequence[Assignment]
) -> Collected:
    """Return the updates that arrived, in order of device, as the server decodes them.

    Only these updates are really trained, which takes no simulated time. An update that started
    from an older model is brought up to date. Raises TrainingError where training diverged and the
    rules say that this ends the run.
    """
    if len(arrived) > 1:
        arrived = sorted(arrived, key=lambda work: (work.plan.device_id, work.broadcast.version))
    found = Collected([], [])
    for work, result in zip(arrived, _trained(federation, arrived), strict=True):
        work.record.train_loss = result.train_loss
        try:
            update = _delivered(federation, work, result)
        except RefusedUpdateError as refusal:
            work.record.outcome = "rejected"
            found.refused.append((work.plan.device_id, str(refusal)))
        else:
            work.record.staleness = state.version - update.broadcast.version
            found.updates.append(up_to_date(update, state.broadcast, federation.pacing))
    return Collected(federation.rules.robustness.tame(found.updates), found.refused)


def _trained(federation: Federation, arrived: Sequence[Assignment]) -> list[TrainingResult]:
    if federation.is_timing_only:  # the broadcast is returned, without drawing examples or seeds
        return [TrainingResult(work.broadcast.adapter, math.nan) for work in arrived]
    jobs = [
        TrainingJob(
            work.plan,
            work.broadcast,
            work.device.examples,
            work.training_seed,
            federation.rules.stack,
            federation.rules.rate_share(work.record.round),
        )
        for work in arrived
    ]
    return federation.trainer.train(jobs)


def _delivered(federation: Federation, work: Assignment, result: TrainingResult) -> ClientUpdate:
    """Return the decoded update. Raises RefusedUpdateError where the server does not merge it."""
    if result.diverged:
        if federation.rules.when_diverged == "stop":
            raise TrainingError(result.diverged)
        raise RefusedUpdateError(result.diverged)
    config = federation.world.faults.attack(work.plan.device_id, work.record.started_s)
    if config is None and result.adapter is work.broadcast.adapter:
        # Nothing was trained. A change of zero is exact at any precision, so no message is made.
        return update_of(work, result.adapter, result)
    num_bytes = upload_bytes(federation.world.model, work.plan.terms)
    attack = attack_of(config, work) if config else None
    rate = federation.rules.rate(work.record.round)
    message = sent(work, result, attack, num_bytes=num_bytes, rate=rate)
    return received(work, message, result, max_norm=federation.rules.robustness.max_norm)


def merge(
    federation: Federation, state: ServerState[Any], updates: Sequence[ClientUpdate], *, where: str
) -> ServerState[Any]:
    """Return the state after the strategy has aggregated; the same where there are no updates.

    Raises InvariantError where the weights do not sum to one, or the result is not finite.
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
    if after.adapter is not state.adapter:
        check_adapter(after.adapter, where)
    return after
