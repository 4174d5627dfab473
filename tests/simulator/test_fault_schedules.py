"""Whatever goes wrong together, a run ends or says why it cannot, and every rule holds.

The rules are those of ``simulator.invariants``, which every run checks; see also
test_invariants.py, which breaks each. Here the schedules of faults are random.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

import pytest
import simpy
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from algorithms.merging.robust import Robustness
from algorithms.registry import PACINGS, SELECTIONS
from algorithms.strategies.fedlora import FedLoRA
from devices.fleet.fleet import Device
from simulator.config.schema import Stop
from simulator.engine.clock import StalledError
from simulator.engine.server import simulate
from tests.simulator.small import DriftTrainer, Memory, make_battery, make_device, make_federation
from tests.simulator.test_conditions import faults, free_run, steps
from tests.torture import long, scaled
from traces.availability import AvailabilityTrace

MAX_STEPS = 1_000_000
"""The most steps of the event queue in a run. A hang takes them all; a run ends before: a plan is
cut at most a thousand times, and a round fails with a hundred lost plans for each of the few
devices here."""

ROUND_S = 0.4  # about what a round of these devices takes
INSTANTS = st.floats(0.0, 6 * ROUND_S)
LENGTHS = st.floats(1e-3, 3 * ROUND_S)


class LimitedClock(simpy.Environment):
    """This event queue fails when it goes on for ever."""

    num_steps = 0

    def step(self) -> None:
        self.num_steps += 1
        assert self.num_steps < MAX_STEPS, f"the run hangs at {self.now!r} s"
        super().step()


def scheduled(devices: int, *, with_length: bool = True) -> st.SearchStrategy[Any]:
    entry: dict[str, st.SearchStrategy[Any]] = {"device": st.integers(0, devices - 1)}
    entry["at_s"] = INSTANTS
    if with_length:
        entry["down_s"] = LENGTHS
    return st.lists(st.fixed_dictionaries(entry), max_size=4)


def outages(devices: int) -> st.SearchStrategy[Any]:
    """Draw outages: some are scheduled, others come by chance, up to several in a round."""
    per_hour = st.sampled_from([0.0, 0.0, 3e3, 3e4])
    return st.fixed_dictionaries(
        {"per_hour": per_hour, "down_s": LENGTHS, "schedule": scheduled(devices)}
    )


def fault_configs(devices: int) -> st.SearchStrategy[Any]:
    moments = scheduled(devices, with_length=False)
    restart = st.fixed_dictionaries({"at_s": INSTANTS, "down_s": LENGTHS})
    kinds = st.sampled_from(["nan", "wrong_shape", "huge_norm", "sign_flip", "noise"])
    return st.fixed_dictionaries(
        {
            "crash": outages(devices),
            "link_loss": outages(devices),
            "cut_transfers": st.sampled_from(["resume", "restart", "drop"]),
            "join": st.fixed_dictionaries({"schedule": moments}),
            "leave": st.fixed_dictionaries({"schedule": moments}),
            "server_restarts": st.lists(restart, max_size=2),
            "byzantine": st.fixed_dictionaries({"kind": kinds, "schedule": moments}),
        }
    )


@st.composite
def conditions(draw: st.DrawFn) -> dict[str, Any]:
    """Return what one device meets beside faults: storms of memory, contention, days, a battery."""
    met: dict[str, Any] = {}
    free = free_run()
    share = free.peak_memory_bytes / 10**9
    if draw(st.booleans()):  # free memory varies around what the plan needs
        levels = st.sampled_from([0.3 * share, 0.9 * share, 1.1 * share, 1.0])
        pairs = draw(st.lists(st.tuples(LENGTHS, levels), min_size=1, max_size=5))
        met["free_memory"] = steps(*pairs)
    if draw(st.booleans()):
        met["speed"] = steps(*draw(st.lists(st.tuples(LENGTHS, st.floats(0.05, 1)), min_size=1)))
    if draw(st.booleans()):
        met["latency"] = steps(*draw(st.lists(st.tuples(LENGTHS, st.floats(0, 0.2)), min_size=1)))
    if draw(st.booleans()):
        edges_s = sorted(draw(st.lists(INSTANTS, min_size=2, max_size=6, unique=True)))
        pairs = list(zip(edges_s[::2], edges_s[1::2], strict=False))
        period_s = draw(st.sampled_from([math.inf, edges_s[-1] + 1.0]))
        met["availability"] = AvailabilityTrace.of(pairs, period_s)
    if draw(st.integers(0, 3)) == 0:
        plugged = AvailabilityTrace.of([(1.0, 2.0)], 3.0)
        met["battery"] = make_battery(
            draw(st.floats(0.05, 5.0)), charge_w=5.0, floor_share=0.1, charging=plugged
        )
    return met


PACING_CHOICES = {
    "synchronous": {"cohort": 3},
    "over_selection": {"cohort": 2, "factor": 1.5},
    "semi_synchronous": {"cohort": 3, "period_s": ROUND_S},
    "fedbuff": {"concurrency": 3, "size": 2},
    "fedasync": {"concurrency": 3},
}


@st.composite
def pacings(draw: st.DrawFn) -> Any:
    kind = draw(st.sampled_from(sorted(PACINGS)))
    keys: dict[str, Any] = dict(PACING_CHOICES.get(kind.replace("-", "_"), {}))
    if kind == "synchronous" and draw(st.booleans()):
        keys["deadline_s"] = draw(st.floats(1e-3, 2 * ROUND_S))
    return PACINGS[kind](**keys)


@st.composite
def federations(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.integers(3, 6))
    rates = st.sampled_from([2e4, 1e5, 4e5])
    fleet = [
        make_device(k, rate_bytes_per_s=draw(rates), **draw(conditions())) for k in range(count)
    ]
    trim_share = draw(st.sampled_from([0.0, 0.34]))
    return {
        "fleet": fleet,
        "faults": faults(count, draw(st.integers(0, 99)), **draw(fault_configs(count))),
        "pacing": draw(pacings()),
        "selection": SELECTIONS[draw(st.sampled_from(["uniform", "fair"]))](),
        "strategy": FedLoRA(rank=2, depth=draw(st.sampled_from(["all", "common"]))),
        "when_offline": draw(st.sampled_from(["abort", "resume", "restart"])),
        "when_out_of_memory": draw(st.sampled_from(["skip", "shrink", "drop"])),
        "robustness": Robustness(max_norm=50.0, trim_share=trim_share),
        "stop": Stop(draw(st.integers(1, 5)), simulated_s=50 * ROUND_S),
        "seed": draw(st.integers(0, 99)),
    }


def run(fleet: list[Device], given: dict[str, Any]) -> tuple[Memory, str]:
    """Return the log, and why the run could not go on, or nothing where it came to its end."""
    log = Memory()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(simpy, "Environment", LimitedClock)
            simulate(make_federation(fleet, trainer=DriftTrainer(), **given), log)
    except StalledError as error:
        return log, str(error)
    return log, ""


@pytest.mark.torture
@settings(
    max_examples=scaled(10, 1000, least=60),
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(federations())
def test_no_schedule_of_faults_hangs_a_run_or_loses_or_doubles_an_update(
    made: dict[str, Any],
) -> None:
    given = {key: value for key, value in made.items() if key != "fleet"}
    log, stalled = run(made["fleet"], given)
    event("stalled" if stalled else "ended")
    for outcome in sorted({record.outcome for record in log.clients}):
        event(f"some {outcome}")
    if stalled:
        assert re.search(
            r"no device is present at .* and none will come any more; let traces loop"
            r"|at most 100 plans .* may fail in one round, got \d+ \(.*\); give rounds a deadline",
            stalled,
        )
        return
    # These are counted from the log, independently of the run's own checks.
    arrived = Counter(e.device for e in log.named("update_received"))
    merged = Counter(d for e in log.named("aggregated") for d in e.details["devices"])
    refused = Counter(e.device for e in log.named("rejected"))
    cut = Counter(
        r.device_id for r in log.clients if r.outcome == "late" and r.round == len(log.rounds) - 1
    )
    assert not (merged + refused) - arrived
    assert not (arrived - merged - refused) - cut
    assert sum(record.num_planned for record in log.rounds) == len(log.clients)


@long
@pytest.mark.torture
@settings(
    max_examples=scaled(10, 100),
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(federations())
def test_faults_are_the_same_again(made: dict[str, Any]) -> None:
    """Nothing of a run is left in the faults or the fleet for the next to trip over."""
    given = {key: value for key, value in made.items() if key != "fleet"}
    first, again = run(made["fleet"], given), run(made["fleet"], given)
    assert first == again or str(first) == str(again)  # NaN is not equal to itself
