"""Each rule of a run can be broken, and is then named with the event that broke it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import algorithms.merging.lora
import algorithms.strategies.fedlora
import simulator.engine.plan_timeline
import simulator.engine.server
from algorithms.merging.lora import WeightsError, example_weights, mean_adapter
from algorithms.pacing import FedBuff
from devices.cost.closed_form import ClosedFormCost
from devices.vocabulary.plan import Factors
from simulator.engine.device import _Client, _Progress
from simulator.engine.plan_timeline import PlanTimeline
from simulator.engine.server import Server, simulate
from simulator.log.checked import InvariantError
from simulator.log.records import ClientRecord, Event
from simulator.log.round_table import RoundTable
from tests.simulator.small import DriftTrainer, Memory, make_device, make_federation
from tests.simulator.test_command import SMALL, fedclock, write
from traces.steps import StepTrace

Patch = pytest.MonkeyPatch


def run(**given: Any) -> Memory:
    log = Memory()
    fleet = [make_device(0), make_device(1, rate_bytes_per_s=5e4)]
    simulate(make_federation(fleet, trainer=DriftTrainer(), **given), log)
    return log


def after(owner: Any, name: str, change: Callable[..., None]) -> Callable[[Patch], None]:
    """Return a mutation that calls ``change`` with a method's arguments once it has ended."""
    original = getattr(owner, name)

    def mutate(patch: Patch) -> None:
        def changed(*given: Any, **keys: Any) -> Any:
            result = original(*given, **keys)
            change(*given, **keys)
            return result

        patch.setattr(owner, name, changed)

    return mutate


def instead(owner: Any, name: str, changed: Callable[..., Any]) -> Callable[[Patch], None]:
    """Return a mutation that replaces a method by another, which is given the original first."""
    original = getattr(owner, name)
    return lambda patch: patch.setattr(owner, name, lambda *a, **k: changed(original, *a, **k))


def early(original: Any, client: _Client, name: str, *details: Any) -> None:
    """Date an event back before the one before it."""
    record, now_s = client.record, client.env.now
    client.context.log.event(Event(now_s - 1, name, record.round, record.device_id, *details))


def early_on_a_timeline(original: Any, timeline: Any, name: str, details: Any) -> None:
    record, now_s = timeline._record, timeline.env.now
    timeline._context.log.event(Event(now_s - 1, name, record.round, record.device_id, details))


def unless(dropped: str) -> Callable[..., None]:
    def event(original: Any, self: Any, name: str, *details: Any) -> None:
        if name != dropped:
            original(self, name, *details)

    return event


def one_byte_more(record: ClientRecord, *_: Any) -> None:
    record.upload_bytes += 1


def collect_stale(original: Any, federation: Any, state: Any, arrived: Any) -> Any:
    updates = original(federation, state, arrived)
    for work in arrived:
        work.record.staleness = -1
    return updates


def throw_away(self: Any, work: Any) -> None:
    if self._arrived and self._round == 1:
        self._arrived.pop().record.outcome = "late"


def train_without_work(original: Any, *given: Any) -> Any:
    return replace(original(*given), flops=0.0)


def wrong_energy(record: ClientRecord, *_: Any) -> None:
    record.energy_idle_j = -1e9


def wrong_start(record: ClientRecord, *_: Any) -> None:
    record.started_s += 1.0
    record.finished_s += 1.0


def negative_wait(record: ClientRecord, *_: Any) -> None:
    record.waiting_s = -1.0


def not_finite(original: Any, *given: Any) -> Any:
    adapter = original(*given)
    key, (a, b) = next(iter(adapter.factors.items()))
    b = b.copy()
    b[0, 0] = np.inf
    return replace(adapter, factors={**adapter.factors, key: Factors(a, b)})


def start_twice(original: Any, context: Any, work: Any, inbox: Any) -> Any:
    context.env.process(original(context, work, inbox))
    return original(context, work, inbox)


def without_last(original: Any, self: Server) -> Any:
    """The last plan of the run is in no record. It was late, so that no count of updates tells."""
    if self._is_over:
        self._ended.pop()
    return original(self)


def skip_round(original: Any, self: Server) -> Any:
    progress = original(self)
    return progress._replace(round=progress.round + (progress.round == 2))


def miscounted(original: Any, *given: Any) -> Any:
    table = original(*given)
    return replace(table, columns={**table.columns, "num_aggregated": np.ones(len(table))})


MUTATIONS = {
    "an event is dated back": (
        instead(_Client, "event", early),
        r"clock must not go back.*event download_started on device 0",
    ),
    "a phase is counted twice": (
        after(_Progress, "_spend", lambda self, s: setattr(self._client.record, "train_s", 1.0)),
        r"must end at its start and what it took.*plan of round 1 on device 0",
    ),
    "a phase lasts less than nothing": (
        instead(_Progress, "_spend", lambda original, self, s: original(self, -s)),
        "no phase may last less than 0 s",
    ),
    "waiting is negative": (after(ClientRecord, "close", negative_wait), "less than 0 s"),
    "a record starts later than its work": (
        after(ClientRecord, "close", wrong_start),
        "record must start with its work",
    ),
    "a byte appears": (
        after(ClientRecord, "close", one_byte_more),
        "bytes sent must be bytes received and lost",
    ),
    "memory is not checked": (
        after(_Client, "_note_memory", lambda self: setattr(self.record, "free_memory_bytes", 9)),
        r"memory in use must be at most what is free, 9 bytes, got \d+; plan of round 1 on device",
    ),
    "an arrival is not logged": (
        instead(Server, "note", unless("update_received")),
        "bytes sent must be bytes received and lost",
    ),
    "a start is not logged": (
        instead(_Client, "event", unless("download_started")),
        r"device without a plan must do nothing.*event training_started on device 0",
    ),
    "a device starts twice": (
        instead(simulator.engine.server, "run_client", start_twice),
        "begin once for each time that it was asked",
    ),
    "an update is merged twice": (
        after(Server, "_receive", lambda self, work: self._arrived.append(work)),
        r"each update must be merged once: merged \[0, 0, 1, 1\], recorded \[0, 1\]",
    ),
    "an update is not merged": (
        instead(
            simulator.engine.server,
            "collect",
            lambda original, f, state, arrived: original(f, state, []),
        ),
        r"each update must be merged once: merged \[\], recorded \[0, 1\]",
    ),
    "an update that arrived is thrown away": (
        after(Server, "_receive", throw_away),
        "an update that arrived must be merged or refused",
    ),
    "a plan has no outcome": (
        instead(Server, "_round_end", without_last),
        "every plan must have an outcome",
    ),
    "training takes no operations": (
        instead(ClosedFormCost, "cost", train_without_work),
        "training must take time and operations",
    ),
    "staleness is negative": (
        instead(simulator.engine.server, "collect", collect_stale),
        "staleness must be at least 0, got -1",
    ),
    "energy is negative": (after(ClientRecord, "close", wrong_energy), "FLOPs and joules"),
    "an aggregate is not finite": (
        instead(algorithms.strategies.fedlora, "mean_adapter", not_finite),
        r"global adapter must be finite; aggregation at .* s in round 1",
    ),
    "weights sum to two": (
        instead(
            algorithms.strategies.fedlora, "holder_weights", lambda original, u: 2 * original(u)
        ),
        r"weights of an average must .* got sums from 2 to 2; aggregation at .* in round 1",
    ),
    "a round is skipped": (
        instead(Server, "_round_end", skip_round),
        "round 3 must follow on round 1",
    ),
    "an outcome is not counted": (
        instead(RoundTable, "of", miscounted),
        "must count one outcome a plan",
    ),
}


TIMELINE_MUTATIONS = {
    "a timeline's event is dated back": (
        instead(PlanTimeline, "_event", early_on_a_timeline),
        r"clock must not go back.*event download_started on device 0",
    ),
    "a stage of a timeline is counted twice": (
        after(PlanTimeline, "_spend", PlanTimeline._spend),
        r"must end at its start and what it took.*plan of round 1 on device 0",
    ),
    "a timeline's start is not logged": (
        instead(PlanTimeline, "_event", unless("download_started")),
        r"device without a plan must do nothing.*event training_started on device 0",
    ),
    "a timeline delivers less than it carries": (
        instead(
            simulator.engine.plan_timeline,
            "end_plan",
            lambda original, context, work, delivered: original(context, work, delivered - 1),
        ),
        "bytes sent must be bytes received and lost",
    ),
}


def test_an_update_that_is_thrown_away_is_found_among_rounds_written_together(
    monkeypatch: Patch,
) -> None:
    thrown = []

    def throw_away_one(self: Any, work: Any) -> None:
        if self._arrived and not thrown:
            thrown.append(self._arrived.pop())
            thrown[0].record.outcome = "late"

    after(Server, "_receive", throw_away_one)(monkeypatch)
    fleet = [make_device(0), make_device(1, rate_bytes_per_s=5e4)]
    with pytest.raises(InvariantError, match="an update that arrived must be merged or refused"):
        simulate(make_federation(fleet, pacing=FedBuff(2, 2), rounds=4), Memory())


@pytest.mark.parametrize("name", TIMELINE_MUTATIONS)
def test_a_rule_that_a_timeline_breaks_stops_the_run(name: str, monkeypatch: Patch) -> None:
    mutate, message = TIMELINE_MUTATIONS[name]
    mutate(monkeypatch)
    with pytest.raises(InvariantError, match=message):
        run()


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_rule_that_is_broken_stops_the_run_and_names_where(name: str, monkeypatch: Patch) -> None:
    mutate, message = MUTATIONS[name]
    pacing = FedBuff(concurrency=2, size=1) if name == "a plan has no outcome" else None
    run(pacing=pacing)  # passes the checks without the mutation
    # Every plan is simulated as a process, which the mutations change.
    monkeypatch.setattr(simulator.engine.server, "stages_of", lambda *_: None)
    run(pacing=pacing)
    mutate(monkeypatch)
    with pytest.raises(InvariantError, match=message):
        run(pacing=pacing)


def test_the_event_that_broke_a_rule_is_the_last_in_the_log(monkeypatch: Patch) -> None:
    monkeypatch.setattr(PlanTimeline, "_event", lambda *given: early_on_a_timeline(None, *given))
    log = Memory()
    with pytest.raises(InvariantError, match="event download_started on device 0 at -1 s"):
        simulate(make_federation([make_device(0)], trainer=DriftTrainer()), log)
    assert (log.events[-1].name, log.events[-1].at_s) == ("download_started", -1.0)


def test_a_plan_that_outgrows_what_is_free_is_found_in_its_record(monkeypatch: Patch) -> None:
    fleet = [make_device(0, free_memory=StepTrace.constant(1e-6))]
    log = Memory()
    simulate(make_federation(fleet, trainer=DriftTrainer()), log)
    assert {record.outcome for record in log.clients} == {"oom"}
    monkeypatch.setattr(_Client, "_out_of_memory", lambda self: True)  # the plan goes on regardless
    with pytest.raises(InvariantError, match="memory in use must be at most what is free"):
        simulate(make_federation(fleet, trainer=DriftTrainer()), Memory())


def test_weights_of_no_average_are_refused(monkeypatch: Patch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(
        algorithms.strategies.fedlora,
        "mean_adapter",
        lambda *args: given.append(args) or mean_adapter(*args),
    )
    run(rounds=1)
    current, updates, weights = given[0]
    mean_adapter(current, updates, weights / 2)  # a sum below 1 counts missing terms as zero
    for wrong in (2 * weights, -weights, weights * np.nan):
        with pytest.raises(WeightsError, match="at least 0 and sum to 1"):
            mean_adapter(current, updates, wrong)
    with pytest.raises(WeightsError), np.errstate(invalid="ignore"):
        example_weights([replace(update, num_examples=0) for update in updates])


SPOILED = """
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from algorithms.strategies.fedlora import FedLoRA


@dataclass(frozen=True)
class Broken(FedLoRA):
    kind: ClassVar[str] = "broken"
    title: ClassVar[str] = "divides by zero in its second round"

    def aggregate(self, state, updates):
        after = super().aggregate(state, updates)
        if state.version == 0:
            return after
        head = {name: values / np.float32(0) for name, values in after.adapter.head.items()}
        return replace(after, adapter=replace(after.adapter, head=head))
"""


def test_a_run_that_breaks_a_rule_has_failed_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(SPOILED, "utf-8")
    config = {k: v for k, v in SMALL.items() if k != "strategies"}
    file = write(tmp_path, {**config, "strategy": {"kind": "broken.py:Broken", "rank": 2}})
    done = fedclock("run", file, cwd=tmp_path)
    assert done.returncode == 1
    assert "the global adapter must be finite; aggregation at" in done.stderr
    assert "in round 2" in done.stderr
    assert "Traceback" not in done.stderr
    (manifest,) = tmp_path.rglob("manifest.json")
    assert json.loads(manifest.read_text("utf-8"))["status"] == "failed"
