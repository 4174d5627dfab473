"""A trace is valid to the letter of the format, and says what the run folder says."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from rich.console import Console

from analysis.commands import reports as commands
from analysis.report.timeline import DEVICES, FIRST_DEVICE_LANE, SERVER, trace
from analysis.runs.files import RunError
from analysis.runs.load import Run, load_run
from devices.tasks.classification import ACCURACY
from simulator.config.experiment import load_experiment
from simulator.config.problems import UserError
from simulator.log.progress import PlainReporter
from simulator.runs.preparation import prepare
from simulator.runs.run import run
from simulator.workers.trainers import Trainers

Json = dict[str, Any]
CONFIG = {
    "name": "lanes",
    "task": {"model": "tiny", "max_length": 16},
    "training": "none",
    "local": {"batch_size": 8, "epochs": 0.02},
    "fleet": {
        "memory_share": [6.1e-4, 8.2e-4],
        "devices": [
            {"profile": "raspberry-pi-3b-plus", "count": 4, "link": "3g"},
            {"profile": "raspberry-pi-4-2gb", "link": "lte-driving", "memory_share": 3.1e-4},
            {"profile": "jetson-nano-5w", "link": "5g", "memory_share": 2.0e-4},
        ],
    },
    "stop": {"rounds": 6},
}
SYNCHRONOUS = {"kind": "synchronous", "cohort": 5, "deadline_s": 1.0}  # drops late updates
WORLDS: dict[str, Json] = {
    "deadline": {"pacing": SYNCHRONOUS},
    "buffered": {"pacing": {"kind": "fedbuff", "concurrency": 4, "size": 2}},
    "faulty": {
        "pacing": SYNCHRONOUS,
        "faults": {
            "crash": {"schedule": [{"device": 5, "at_s": 0.2, "down_s": 0.3}]},
            "link_loss": {"schedule": [{"device": 2, "at_s": 0.005, "down_s": 0.1}]},
        },
    },
}


@pytest.fixture(scope="module", params=WORLDS)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp(request.param)
    # This plan does not fit into the memory of one of the devices.
    strategy = {"kind": "fedlora", "rank": 4, "depth": "all"}
    text = yaml.safe_dump(CONFIG | WORLDS[request.param] | {"strategy": strategy})
    (folder / "x.yaml").write_text(text, "utf-8")
    (config,) = load_experiment(folder / "x.yaml")
    with Trainers(1) as trainers:
        prepared = prepare(config, folder / "run", "x.yaml")
        run(prepared, trainers=trainers, report=PlainReporter(Console(quiet=True)))
    return load_run(folder / "run")


def events(finished: Run) -> list[Json]:
    return check(trace(finished))


def check(text: str) -> list[Json]:
    """Return the events of a trace; fail if the text is no trace or a lane is no sequence."""
    content = json.loads(text, parse_constant=pytest.fail)  # NaN is not JSON
    assert set(content) == {"otherData", "traceEvents"}
    lanes: dict[tuple[int, int], list[Json]] = defaultdict(list)
    counters: dict[str, list[Json]] = defaultdict(list)
    for event in content["traceEvents"]:
        check_event(event)
        if event["ph"] == "C":
            counters[event["name"]].append(event)
        elif event["ph"] in "Xi":
            lanes[event["pid"], event["tid"]].append(event)
    for lane in [*lanes.values(), *counters.values()]:
        assert [event["ts"] for event in lane] == sorted(event["ts"] for event in lane)
    for lane in lanes.values():
        check_nesting([event for event in lane if event["ph"] == "X"])
    named = {(e["pid"], e["tid"]) for e in content["traceEvents"] if e["name"] == "thread_name"}
    assert set(lanes) <= named
    return list(content["traceEvents"])


def check_event(event: Json) -> None:
    """Check what the Trace Event Format asks of each kind of event."""
    keys = {
        "X": {"ph", "pid", "tid", "ts", "dur", "name", "cat", "args"},
        "i": {"ph", "pid", "tid", "ts", "s", "name", "cat", "args"},
        "C": {"ph", "pid", "ts", "name", "args"},
        "M": {"ph", "pid", "tid", "ts", "name", "args"},
    }[event["ph"]]
    assert keys <= set(event) <= keys | {"cname"}
    assert all(type(event[key]) is int and event[key] >= 0 for key in {"pid", "tid", "ts"} & keys)
    assert isinstance(event["name"], str)
    assert event["name"]
    assert isinstance(event["args"], dict)
    if event["ph"] == "X":
        assert type(event["dur"]) is int
        assert event["dur"] > 0
    if event["ph"] == "i":
        assert event["s"] in ("g", "p", "t")
    if event["ph"] == "C":
        assert event["args"]
        assert all(isinstance(value, int | float) for value in event["args"].values())
    if event["ph"] == "M":
        key = {"name": "name", "sort_index": "sort_index"}[event["name"].split("_", 1)[1]]
        assert set(event["args"]) == {key}


def check_nesting(slices: list[Json]) -> None:
    """Check that each slice begins after the one before it ended, or lies within it."""
    open_until: list[int] = []
    for event in slices:
        while open_until and open_until[-1] <= event["ts"]:
            open_until.pop()
        end = event["ts"] + event["dur"]
        assert not open_until or end <= open_until[-1], f"{event} overlaps the slice before it"
        open_until.append(end)


def seconds(trace_events: list[Json], name: str) -> float:
    return sum(e["dur"] for e in trace_events if e["ph"] == "X" and e["name"] == name) / 1e6


def test_a_trace_keeps_to_the_format_and_its_lanes_do_not_overlap(finished: Run) -> None:
    found = events(finished)
    assert {e["ph"] for e in found} == {"X", "i", "C", "M"}
    assert {e["pid"] for e in found} == {SERVER, DEVICES}


@pytest.mark.parametrize("phase", ["download", "train", "upload", "waiting"])
def test_a_phase_takes_as_long_in_the_trace_as_in_the_tables(finished: Run, phase: str) -> None:
    name = {"train": "training", "waiting": "wait"}.get(phase, phase)
    rows = finished.clients[f"{phase}_s"]
    # Either end of a slice is rounded by at most half a microsecond.
    assert seconds(events(finished), name) == pytest.approx(rows.sum(), abs=1e-6 * len(rows))


def test_training_is_cut_into_its_passes_by_their_planned_share(finished: Run) -> None:
    clients = finished.clients
    for name in ("forward", "backward", "quantize"):
        expected = (clients["train_s"] * clients[f"{name}_share"]).sum()
        assert seconds(events(finished), name) == pytest.approx(expected, abs=2e-6 * len(clients))
    assert seconds(events(finished), "backward") > seconds(events(finished), "forward") > 0


def test_marks_stand_where_the_log_has_them(finished: Run) -> None:
    found = events(finished)
    for outcome in ("oom", "late", "crashed"):
        expected = [
            (FIRST_DEVICE_LANE + row.device_id, round(row.finished_s * 1e6))
            for row in finished.clients[finished.clients["outcome"] == outcome].itertuples()
        ]
        marks = [(e["tid"], e["ts"]) for e in found if e["ph"] == "i" and e["name"] == outcome]
        assert sorted(marks) == sorted(expected)
    assert "oom" in set(finished.clients["outcome"])
    merged = [e["ts"] for e in found if e["ph"] == "i" and e["name"] == "aggregated"]
    closed = finished.rounds.loc[finished.rounds["round"] > 0, "closed_s"]
    assert merged == [round(at_s * 1e6) for at_s in closed]


def test_a_faulty_world_leaves_its_marks(finished: Run) -> None:
    marks = {e["name"] for e in events(finished) if e["ph"] == "i" and e["pid"] == DEVICES}
    is_faulty = bool(finished.config["faults"]["crash"].get("schedule"))
    assert ({"crashed", "link_lost"} <= marks) == is_faulty


def test_counters_end_where_the_tables_do(finished: Run) -> None:
    last = {e["name"]: e["args"] for e in events(finished) if e["ph"] == "C"}
    sums = finished.clients[["download_bytes", "upload_bytes"]].sum()
    assert last["bytes"] == {"download": sums["download_bytes"], "upload": sums["upload_bytes"]}
    assert last["in flight"] == {"devices": 0}
    most = max(e["args"]["devices"] for e in events(finished) if e["name"] == "in flight")
    assert most <= 5


def test_accuracy_counts_where_it_was_evaluated_and_nowhere_else(finished: Run) -> None:
    assert not [e for e in events(finished) if e["name"] == "accuracy"]  # timing only: all NaN
    rounds = finished.rounds.assign(accuracy=[0.25, math.nan, 0.5, *[math.nan] * 4])
    evaluated = Run(**{**vars(finished), "rounds": rounds})
    found = [e for e in events(evaluated) if e["name"] == "accuracy"]
    assert [e["args"]["accuracy"] for e in found] == [0.25, 0.5]
    assert found[1]["ts"] == round(rounds["closed_s"][2] * 1e6)


def test_the_same_run_has_the_same_bytes(finished: Run) -> None:
    assert trace(finished) == trace(load_run(finished.path))


def test_a_run_of_an_older_format_has_training_uncut(finished: Run) -> None:
    clients = finished.clients.drop(columns=["forward_share", "backward_share", "quantize_share"])
    found = events(Run(**{**vars(finished), "clients": clients}))
    assert seconds(found, "forward") == 0
    assert seconds(found, "training") == pytest.approx(clients["train_s"].sum(), abs=1e-4)


def written(folder: Path, log: list[Json], plan: Json) -> Run:
    """Return a run of one device, written by hand."""
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    device = {"device_id": 0, "profile": "phone", "link": "lte"}
    rounds = {"round": [0, 1], "opened_s": [0.0, 0.0], "closed_s": [0.0, 9.0], "accuracy": math.nan}
    return Run(
        path=folder,
        label="by hand",
        manifest={},
        config={},
        devices=pd.DataFrame([device]),
        rounds=pd.DataFrame(rounds),
        clients=pd.DataFrame([device | plan | {"download_bytes": 1, "upload_bytes": 1}]),
        metric=ACCURACY,
    )


def test_a_pause_offline_lies_within_its_phase_and_a_loss_ends_it(tmp_path: Path) -> None:
    steps = [
        (0.0, "download_started"), (1.0, "training_started"), (2.0, "went_offline"),
        (4.0, "came_back"), (5.0, "upload_started"), (6.0, "went_offline"),
    ]  # fmt: skip
    log = [{"at_s": at_s, "event": name, "round": 1, "device": 0} for at_s, name in steps]
    shares = {"forward_share": 0.3, "backward_share": 0.6, "quantize_share": 0.0}
    plan = {"round": 1, "started_s": 0.0, "finished_s": 6.0, "waiting_s": 3.0} | shares
    found = [e for e in check(trace(written(tmp_path, log, plan))) if e["pid"] == DEVICES]
    slices = [(e["name"], e["ts"], e["ts"] + e["dur"]) for e in found if e["ph"] == "X"]
    assert [(name, start / 1e6, end / 1e6) for name, start, end in slices] == [
        ("download", 0, 1), ("training", 1, 5), ("offline", 2, 4), ("upload", 5, 6), ("wait", 6, 9),
    ]  # fmt: skip
    marks = [(e["name"], e["ts"] / 1e6) for e in found if e["ph"] == "i"]
    assert marks == [("went_offline", 2), ("came_back", 4), ("went_offline", 6)]


def test_a_damaged_log_is_named(finished: Run, tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("{\n")
    with pytest.raises(RunError, match=r"events\.jsonl: line 1 is not JSON"):
        trace(Run(**{**vars(finished), "path": tmp_path}))


def test_the_command_writes_the_trace_where_it_is_told(finished: Run, tmp_path: Path) -> None:
    commands.timeline(finished.path, tmp_path / "t.json")
    assert (tmp_path / "t.json").read_text("utf-8") == trace(finished)
    commands.timeline(finished.path)
    assert (finished.path / "trace.json").read_text("utf-8") == trace(finished)


def test_what_the_command_cannot_read_or_write_is_one_message(
    finished: Run, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=r"is not a run folder: it holds no manifest\.json"):
        commands.timeline(tmp_path)
    with pytest.raises(UserError, match=r"the trace cannot be written to .*none/t\.json"):
        commands.timeline(finished.path, tmp_path / "none" / "t.json")
