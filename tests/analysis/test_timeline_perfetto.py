"""Perfetto accepts a trace by its reader's rules, its published proto, and itself if installed.

The reader below keeps to the strictest of what versions of Perfetto's trace processor ask of JSON:
src/trace_processor/importers/json, json_trace_tokenizer.cc and json_trace_parser_impl.cc, of 2021
to 2025. They look for ``ts`` and ``dur`` in the text of an event before they parse it, understand
no escape but of one character in what they pass on the way, and give up the whole trace there.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from analysis.report.timeline import trace
from analysis.runs.load import Run, load_run
from simulator.config.experiment import load_experiment
from simulator.log.progress import PlainReporter
from simulator.runs.preparation import prepare
from simulator.runs.run import run
from simulator.workers.trainers import Trainers
from tests.analysis.test_timeline import CONFIG, WORLDS

Json = dict[str, Any]
LINK = 'zürich-Σ\x1b-\u202e"quoted"\\'


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the trace of a run with faults, whose link has a name of every kind of character."""
    folder = tmp_path_factory.mktemp("perfetto")
    config = {**CONFIG, **WORLDS["faulty"], "strategy": {"kind": "fedlora", "rank": 4}}
    (folder / "x.yaml").write_text(yaml.safe_dump(config), "utf-8")
    (config_of_run,) = load_experiment(folder / "x.yaml")
    with Trainers(1) as trainers:
        prepared = prepare(config_of_run, folder / "run", "x.yaml")
        run(prepared, trainers=trainers, report=PlainReporter(Console(quiet=True)))
    finished = load_run(folder / "run")
    devices = finished.devices.assign(link=LINK)
    return trace(Run(**{**vars(finished), "devices": devices}))


def read_string(text: str, at: int) -> int:
    """Return the place after the string whose opening quote is at ``at``."""
    at += 1
    while text[at] != '"':
        assert ord(text[at]) >= 32, "a control character in a string"
        if text[at] == "\\":
            at += 1
            assert text[at] in '"\\/bfnrt', f"the escape \\{text[at]} in {text[at - 20 : at + 9]}"
        at += 1
    return at + 1


def read_value(text: str, at: int) -> int:
    """Return the place after a value of an event: an object, a string or a number."""
    if text[at] == '"':
        return read_string(text, at)
    assert text[at] != "[", "an event with a list"
    if text[at] != "{":
        while text[at] not in ",}":
            at += 1
        return at
    depth = 0
    while True:
        if text[at] == '"':
            at = read_string(text, at)
            continue
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        at += 1
        if depth == 0:
            return at


def keys_of(event: str) -> list[str]:
    """Return the keys of an event in their order, read as Perfetto does."""
    at, keys = 1, []
    while event[at] != "}":
        if event[at] in ", ":
            at += 1
            continue
        assert event[at] == '"'
        end = read_string(event, at)
        keys.append(event[at + 1 : end - 1])
        assert event[end] == ":"
        at = read_value(event, end + 2 if event[end + 1] == " " else end + 1)
    return keys


def test_the_outer_object_has_nothing_that_a_version_of_perfetto_trips_over(text: str) -> None:
    assert text.lstrip()[0] == "{"
    content = json.loads(text)
    # Unknown keys end the reading of older versions; displayTimeUnit scales the time of some.
    assert set(content) == {"otherData", "traceEvents"}
    assert all(not isinstance(value, list) for value in content["otherData"].values())
    assert text.index('"otherData"') < text.index('"traceEvents"')


def test_each_event_is_found_by_the_strictest_reader(text: str) -> None:
    lines = text.splitlines()[1:-1]
    events = json.loads(text)["traceEvents"]
    assert len(lines) == len(events) > 50
    for line, event in zip(lines, events, strict=True):
        keys = keys_of(line.rstrip(","))
        assert keys == list(event)
        numbers = {"ts", "dur", "pid", "tid"} & set(keys)
        assert all(keys.index(key) < keys.index("name") for key in numbers)


def test_each_event_is_one_that_the_parser_keeps(text: str) -> None:
    events = json.loads(text)["traceEvents"]
    for event in events:
        assert event["ph"] in "XiCM"
        for key in ("pid", "tid"):
            assert 0 < event.get(key, 1) < 2**32 or event["ph"] == "M"
        if event["ph"] == "X":
            assert event["dur"] > 0
        if event["ph"] == "i":
            assert event["s"] == "t"
            assert "tid" in event
        if event["ph"] == "C":
            assert all(isinstance(value, int | float) for value in event["args"].values())
    named = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert any(r"zürich-Σ\x1b-\u202e" in name for name in named)


def test_each_event_fits_the_published_proto(text: str) -> None:
    proto = pytest.importorskip(
        "perfetto.protos.perfetto.trace.perfetto_trace_pb2",
        reason="the package perfetto is not installed",
    )
    events = json.loads(text)["traceEvents"]
    written = proto.Trace()
    tracks = {name: number for number, name in enumerate(sorted({_track(e) for e in events}), 1)}
    for event in events:
        packet = written.packet.add()
        if event["name"] == "thread_name":
            packet.track_descriptor.uuid = tracks[_track(event)]
            packet.track_descriptor.thread.pid = event["pid"]
            packet.track_descriptor.thread.tid = event["tid"]
            packet.track_descriptor.thread.thread_name = event["args"]["name"]
        if event["ph"] in "Xi":
            _add(proto, packet, event, tracks[_track(event)])
            if event["ph"] == "X":
                end = written.packet.add()
                end.timestamp = 1000 * (event["ts"] + event["dur"])
                end.track_event.type = proto.TrackEvent.TYPE_SLICE_END
                end.track_event.track_uuid = tracks[_track(event)]
    again = proto.Trace.FromString(written.SerializeToString())
    assert _ends_with_its_own(again, proto)


def _track(event: Json) -> tuple[int, int]:
    return event["pid"], event.get("tid", 0)


def _add(proto: Any, packet: Any, event: Json, track: int) -> None:
    packet.timestamp = 1000 * event["ts"]
    packet.track_event.track_uuid = track
    packet.track_event.name = event["name"]
    packet.track_event.categories.append(event["cat"])
    is_slice = event["ph"] == "X"
    kind = proto.TrackEvent
    packet.track_event.type = kind.TYPE_SLICE_BEGIN if is_slice else kind.TYPE_INSTANT


def _ends_with_its_own(written: Any, proto: Any) -> bool:
    """Return whether the slices of each track nest: each end closes the slice begun last."""
    events: dict[int, list[tuple[int, int, int, str]]] = defaultdict(list)
    kind = proto.TrackEvent
    for number, packet in enumerate(written.packet):
        event = packet.track_event
        if event.type == kind.TYPE_SLICE_BEGIN:
            end = written.packet[number + 1].timestamp
            # Of slices that begin together the longest is the outer one. Ends come before begins.
            events[event.track_uuid].append((packet.timestamp, 1, -end, event.name))
            events[event.track_uuid].append((end, 0, -packet.timestamp, event.name))
    for track in events.values():
        open_names: list[str] = []
        for _, is_begin, _, name in sorted(track):
            if is_begin:
                open_names.append(name)
            elif not open_names or open_names.pop() != name:
                return False
        if open_names:
            return False
    return bool(events)


def test_the_trace_processor_itself_reads_all_of_it(text: str, tmp_path: Path) -> None:
    shell = shutil.which("trace_processor_shell") or shutil.which("trace_processor")
    if shell is None:
        pytest.skip("Perfetto's trace processor is not installed (perfetto.dev)")
    (tmp_path / "trace.json").write_text(text, "utf-8")
    (tmp_path / "query.sql").write_text(
        "select (select count(*) from slice) as slices, "
        "(select coalesce(sum(value), 0) from stats where severity = 'error') as errors;"
    )
    done = subprocess.run(
        [shell, "-q", str(tmp_path / "query.sql"), str(tmp_path / "trace.json")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    slices = sum(event["ph"] in "Xi" for event in json.loads(text)["traceEvents"])
    assert done.stdout.split()[-1].replace('"', "") == f"{slices},0", done.stderr
