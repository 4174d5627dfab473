"""Holds a run with differential privacy to what its accountant assumes, and tells its epsilon."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

from algorithms.merging.privacy import sends_alike
from algorithms.strategy import ServerState
from devices.vocabulary.plan import DeviceId, TrainingPlan
from simulator.config.experiment import ConfigError
from simulator.config.schema import RunConfig
from simulator.engine.conditions import Conditions
from simulator.engine.presence import are_always_there


class Rehearsed(NamedTuple):
    """A rehearsal of a strategy has its first state, its plans, and the devices without a plan."""

    state: ServerState[Any]
    plans: Sequence[TrainingPlan]
    idle: Sequence[DeviceId]


def check_private(config: RunConfig, world: Conditions, rehearsed: Rehearsed, where: Any) -> None:
    """Raise ConfigError with everything that the guarantee of ``config.privacy`` forbids."""
    kind, robust = config.strategy.kind, config.aggregation
    is_plain = getattr(config.strategy, "is_mean", False) and rehearsed.state.memory is None
    rules = {
        "have the library dp-accounting: pip install 'fedclock[privacy]'": find_spec(
            "dp_accounting"
        )
        is not None,
        f"have selection uniform, got {config.selection.kind}": config.selection.kind == "uniform",
        f"have pacing synchronous, got {config.pacing.kind}": config.pacing.kind == "synchronous",
        "have devices that are there at all times, since a cohort must be drawn from all of them, "
        "got some that come, go, run flat or crash": are_always_there(world.fleet, world.faults),
        f"have devices that can all hold a plan, got {len(rehearsed.idle)} that cannot": not (
            rehearsed.idle
        ),
        f"have a strategy that takes one mean and remembers nothing else, got {kind}": is_plain,
        f"have devices that all send the same terms, which {kind} does not ask of them": (
            not rehearsed.plans or sends_alike(rehearsed.plans)
        ),
        "have no aggregation.clip_norm, max_norm or trim_share beside its own clipping": (
            robust.clip_norm is None and robust.max_norm is None and not robust.trim_share
        ),
    }
    if broken := [rule for rule, holds in rules.items() if not holds]:
        raise ConfigError([f"privacy: a run must {rule}" for rule in broken], where)


def spent_privacy(config: RunConfig, world: Conditions, *, rounds: int) -> dict[str, float]:
    """Return, for the manifest, the epsilon and delta of a run after so many aggregations."""
    privacy = config.privacy
    if privacy is None:
        return {}
    cohort = config.pacing.slots(in_flight=0, buffered=0)
    epsilon = privacy.epsilon(num_devices=len(world.fleet), cohort=cohort, rounds=rounds)
    return {"epsilon": epsilon, "delta": privacy.delta}
