"""Lets the strategy of a run plan once before the clock starts."""

from __future__ import annotations

from collections.abc import Sequence

from devices.vocabulary.plan import DeviceId, TrainingPlan
from devices.vocabulary.trainer import NullTrainer
from simulator.config.experiment import ConfigError
from simulator.config.origin import Origin
from simulator.config.schema import RunConfig
from simulator.engine.seeds import stream
from simulator.engine.server_view import ServerView
from simulator.world.build import World
from simulator.world.private import Rehearsed, check_private

MAX_REHEARSED = 1_000
"""The most devices that are planned for; in a larger fleet they are evenly spread."""


def rehearse(
    config: RunConfig, world: World, where: str | Origin
) -> tuple[Sequence[DeviceId], Sequence[TrainingPlan]]:
    """Let the strategy plan for the fleet once; return the devices that it was asked, and plans.

    In a large fleet it plans for about ``MAX_REHEARSED`` devices, evenly spread. Raises ConfigError
    where it cannot plan at all. No model is loaded: every block counts as equally salient.
    """
    view = ServerView(world, config.local, NullTrainer(world.model.num_blocks))
    rng = stream(config.seed, "rehearsal")
    strategy = config.strategy
    state = strategy.init(world.model.initial_adapter(strategy.rank, strategy.alpha, rng))
    try:
        cohort = view.device_ids[:: -(-len(world.fleet) // MAX_REHEARSED)]
        plans = strategy.plan(state, view, cohort, rng)
    except ValueError as error:
        raise ConfigError([f"strategy: {error}"], where) from None
    if config.aggregation.trim_share and any(plan.terms.use == "fresh" for plan in plans):
        raise ConfigError(
            [
                f"aggregation.trim_share must be 0 under {strategy.kind}, whose devices start from "
                f"factors of their own: no two have a coordinate in common; clip_norm is possible"
            ],
            where,
        )
    if config.privacy:
        planned = {plan.device_id for plan in plans}
        idle = [device for device in cohort if device not in planned]
        check_private(config, world, Rehearsed(state, plans, idle), where)
    return cohort, plans
