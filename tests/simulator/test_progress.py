"""A person sees of a run who is awaited, what is lost and where the clock stands."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console
from rich.progress import Task, TaskID

from devices.tasks.classification import ACCURACY
from simulator.engine.federation import Federation
from simulator.engine.server import simulate
from simulator.log.progress import BarReporter, PlainReporter, Reporter, TimeLeft, reporter
from simulator.log.progress_state import ProgressState, duration
from simulator.log.records import ClientRecord, Event
from tests.simulator.small import DriftTrainer, Memory, make_device, make_federation

LABEL = "a [red]label[/red]"


def federation() -> Federation:
    """Return one fast device, one slow one, and one whose memory holds no plan of FedLoRA's."""
    fleet = [
        make_device(0),
        make_device(1, flops_per_s=1e7),
        make_device(2, budget_bytes=1000),
    ]
    return make_federation(fleet, trainer=DriftTrainer(), rounds=2)


def shown(console: Console, report: Reporter) -> str:
    """Return all that was written while a run went on."""
    report.start(LABEL, 2)
    simulate(federation(), report)
    report.finish("done")
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


@pytest.fixture(scope="module")
def log() -> Memory:
    memory = Memory()
    simulate(federation(), memory)
    return memory


def test_lines_say_clock_accuracy_straggler_and_losses(log: Memory) -> None:
    console = Console(file=io.StringIO(), width=300)
    lines = shown(console, PlainReporter(console)).splitlines()
    first, second, third, done = lines
    assert first.startswith(f"{LABEL}: round 0/2, simulated 0.0s, accuracy")
    assert done == "done"
    for line, record in zip((second, third), log.rounds[1:], strict=True):
        assert line == (
            f"{LABEL}: round {record.round}/2, simulated {duration(record.closed_s)},"
            f" accuracy {record.score:.1%},"
            " waited for device 1 (test-1e+07), mostly training, 1 out of memory"
        )


def test_a_terminal_shows_the_same_live_and_sums_up_the_losses(log: Memory) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    text = shown(console, BarReporter(console))
    assert LABEL in text
    assert "2/2 rounds" in text
    assert f"accuracy {log.rounds[-1].score:.1%}" in text
    assert "device 1 (test-1e+07), mostly training (last round)" in text
    spent_s = [record.finished_s - record.started_s for record in log.clients]
    lost_s = [s for s, r in zip(spent_s, log.clients, strict=True) if r.outcome == "oom"]
    share = f"{sum(lost_s) / sum(spent_s):.0%}"
    assert text.rstrip().endswith(f"lost: 2 out of memory: {share} of device time")


def test_bars_are_for_terminals_and_lines_for_files() -> None:
    assert isinstance(reporter(Console(file=io.StringIO(), force_terminal=True)), BarReporter)
    assert isinstance(reporter(Console(file=io.StringIO())), PlainReporter)


def test_devices_in_flight_are_counted_by_what_they_do(log: Memory) -> None:
    state, seen = ProgressState(), []
    for event in log.events:
        state.event(event)
        seen.append(state.in_flight)
        if event.name == "aggregated":
            break
    assert seen[-1] == ""
    assert "3 downloading" in seen
    assert "2 training" in seen
    assert "1 training, 1 uploading" in seen
    assert "1 training, 1 arrived" in seen
    assert seen[-2] == "2 arrived"


def test_a_device_offline_is_counted_as_such_until_it_is_back_or_lost(log: Memory) -> None:
    state = ProgressState()
    steps = {
        "training_started": "1 training",
        "went_offline": "1 offline",
        "came_back": "1 training",
    }
    for name, expected in steps.items():
        state.event(Event(1.0, name, 1, 4))
        assert state.in_flight == expected
    state.event(Event(2.0, "went_offline", 1, 4))
    gone: ClientRecord = replace(log.clients[0], device_id=4, outcome="offline")
    state.client(gone)
    assert state.in_flight == ""


def test_a_round_that_merged_nothing_waited_for_nobody(log: Memory) -> None:
    state = ProgressState()
    state.client(replace(log.clients[0], outcome="oom"))
    state.round(replace(log.rounds[1], metrics={ACCURACY: float("nan")}, num_late=0))
    assert state.straggler == ""
    assert state.scores == ""
    assert state.lost == "1 out of memory: 100% of device time"


def test_the_best_accuracy_is_named_where_it_is_not_the_last(log: Memory) -> None:
    state = ProgressState()
    for accuracy in (0.2, 0.6, 0.5, float("nan")):
        state.round(replace(log.rounds[1], metrics={ACCURACY: accuracy}))
    assert state.scores == "accuracy 50.0% (best 60.0%)"


@pytest.mark.parametrize(
    ("seconds", "words"), [(4.06, "4.1s"), (200.0, "3m 20s"), (3900.0, "1h 05m")]
)
def test_durations_are_short(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_the_time_left_is_told_once_rounds_after_the_first_show_their_pace() -> None:
    now_s, column, texts = 0.0, TimeLeft(), []
    task = Task(TaskID(0), "run", 100, 0, _get_time=lambda: now_s)
    task.start_time = 0.0
    for done, now_s in ((0, 1.0), (1, 60.0), (2, 61.0), (3, 62.0)):  # noqa: B007 # the task reads it
        task.completed = done
        texts.append(column.render(task).plain)
    assert texts == ["", "", "", "about 1m 37s left"]
