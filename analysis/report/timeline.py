"""Writes a run as a Chrome trace, a lane per device, for Perfetto and chrome://tracing.

The format is Google's "Trace Event Format". Instants and durations are whole microseconds of the
simulated clock, so that what follows each other in a lane never overlaps by rounding.

Perfetto's trace processor reads less than the format allows, and some of its versions less than
others (src/trace_processor/importers/json there). So there is no ``displayTimeUnit``, by which some
took instants for milliseconds; no text has an escape of the kind ``\\u00e9``, which ends their
reading; and the numbers of an event stand before its texts.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.escape import visible
from analysis.runs.files import Json
from analysis.runs.load import Run

SERVER, DEVICES = 1, 2  # process ids, by which the format groups lanes
SERVER_LANE = 1
# Thread ids of devices begin here: Perfetto reserves 0, and shows a thread whose id is that of its
# process as "main".
FIRST_DEVICE_LANE = 1000
STARTED = "_started"
ENDS = ("update_received", "oom", "late", "crashed", "lost", "rejected")
PASSES = ("forward", "backward", "quantize")  # the parts of training whose seconds a plan records
SHOWN = ("outcome", "depth", "mean_weight_bits", "mean_upload_bits", "peak_memory_bytes",
         "memory_budget_bytes", "staleness")  # fmt: skip
COLORS = {  # activity -> colour name of the format
    "download": "rail_response",
    "training": "thread_state_running",
    "upload": "rail_animation",
    "wait": "thread_state_sleeping",
    "offline": "terrible",
}


def trace(run: Run) -> str:
    """Return the JSON text of the run's trace, one event a line; the same bytes for the same run.

    Raises RunError where the event log is damaged.
    """
    events = list(run.events())
    lanes = [*_server_lane(run, events), *_counters(run), *_device_lanes(run, events)]
    # Events that begin together are sorted as viewers need them: the longest slice first, instants
    # last.
    lanes.sort(key=lambda e: (e["pid"], e.get("tid", 0), e["ts"], -e.get("dur", -1)))
    lines = (_json(event) for event in [*_names(run), *lanes])
    about = {
        name: run.manifest.get(name) for name in ("label", "strategy", "seed", "config_hash")
    } | {"clock": "simulated"}
    head = f'{{"otherData": {_json(about)}, "traceEvents": ['
    return head + "\n" + ",\n".join(lines) + "\n]}\n"


def _json(value: Json) -> str:
    """Return the JSON of an object; characters that do not print are shown by their number."""
    return json.dumps(_visible(value), allow_nan=False, ensure_ascii=False)


def _visible(value: Any) -> Any:
    if isinstance(value, dict):
        return {visible(str(key)): _visible(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_visible(inner) for inner in value]
    return visible(value) if isinstance(value, str) else value


def _names(run: Run) -> Iterator[Json]:
    """Yield the names of the lanes, and their order from the top."""
    groups = {SERVER: f"server ({run.label})", DEVICES: "devices"}
    for process, name in groups.items():
        yield _meta("process_name", process, {"name": name})
        yield _meta("process_sort_index", process, {"sort_index": process})
    yield _meta("thread_name", SERVER, {"name": "rounds"}, SERVER_LANE)
    seen = run.devices[run.devices["device_id"].isin(run.clients["device_id"])]
    for row in seen.sort_values("device_id").to_dict("records"):
        lane = FIRST_DEVICE_LANE + int(row["device_id"])
        name = f"device {row['device_id']}: {row['profile']}, {row['link']}"
        yield _meta("thread_name", DEVICES, {"name": name}, lane)
        yield _meta("thread_sort_index", DEVICES, {"sort_index": lane}, lane)


def _server_lane(run: Run, events: Iterable[Json]) -> Iterator[Json]:
    """Return a slice for each round, and a mark for each event that is of no device."""
    for row in run.rounds[run.rounds["round"] > 0].to_dict("records"):
        numbers = {str(key): value for key, value in row.items() if str(key).startswith("num_")}
        counts = {key: int(value) for key, value in numbers.items() if value > 0}
        start_us, end_us = _us(row["opened_s"]), _us(row["closed_s"])
        yield from _slice(SERVER, SERVER_LANE, f"round {row['round']}", (start_us, end_us), counts)
    for event in events:
        usual = event["event"] in ("round_opened", "refilled", "evaluated")
        if event["device"] is None and not usual:
            yield _instant(SERVER, SERVER_LANE, event)


def _counters(run: Run) -> Iterator[Json]:
    """Return first metric, devices in flight and bytes; those of a plan count when it ends."""
    name = run.metric.name
    for row in run.rounds.dropna(subset=name).to_dict("records"):
        yield _counter(name, row["closed_s"], {name: row[name]})
    clients = run.clients
    steps = pd.concat(
        [pd.Series(1, index=clients["started_s"]), pd.Series(-1, index=clients["finished_s"])]
    )
    in_flight = steps.groupby(level=0).sum().cumsum()
    for at_s, number in in_flight.items():
        yield _counter("in flight", at_s, {"devices": int(number)})
    sent = clients.groupby("finished_s")[["download_bytes", "upload_bytes"]].sum().cumsum()
    for at_s, download, upload in sent.itertuples():
        yield _counter("bytes", at_s, {"download": int(download), "upload": int(upload)})


def _device_lanes(run: Run, events: Iterable[Json]) -> Iterator[Json]:
    """Return what each device did."""
    by_device: dict[int, list[Json]] = defaultdict(list)
    for event in events:
        if event["device"] is not None and event["event"] != "sat_out":
            by_device[int(event["device"])].append(event)
    clients = run.clients.sort_values(["device_id", "started_s"], kind="stable")
    for device_id, rows in clients.groupby("device_id"):
        plans = [{str(key): value for key, value in row.items()} for row in rows.to_dict("records")]
        lane = FIRST_DEVICE_LANE + int(str(device_id))
        yield from _device_lane(lane, plans, by_device[int(str(device_id))])


def _device_lane(lane: int, plans: list[Json], events: list[Json]) -> Iterator[Json]:
    """Return what one device did, from its plans and its events, both in order of time."""
    starts = [plan["started_s"] for plan in plans]
    for number, event in enumerate(events):
        plan = plans[max(0, bisect_right(starts, event["at_s"]) - 1)]
        phase = str(event["event"]).removesuffix(STARTED)
        if phase != event["event"]:
            yield from _phase(lane, phase, plan, events[number:])
        elif phase != "update_received":
            yield _instant(DEVICES, lane, event)
        if phase == "went_offline":
            span_us = _us(event["at_s"]), _end_us(plan, event, events[number + 1 :][:1])
            yield from _slice(DEVICES, lane, "offline", span_us, {})
    yield from _waits(lane, plans)


def _phase(lane: int, name: str, plan: Json, events: Sequence[Json]) -> Iterator[Json]:
    """Yield the slice of a phase: from the first event to the one that ends it, or the plan's end.

    Training is shown by pass too, unless it was interrupted and went on, or the plan was replaced
    by a smaller one: the record has the shares of the last.
    """
    started, place = events[0], 1
    while place < len(events) and not _ends_phase(events[place]):
        place += 1
    span_us = _us(started["at_s"]), _end_us(plan, started, events[place : place + 1])
    yield from _slice(DEVICES, lane, name, span_us, _details(started) | _of_plan(plan))
    if name == "training" and place == 1 and not plan.get("num_shrinks", 0):
        yield from _passes(lane, span_us, plan)


def _ends_phase(event: Json) -> bool:
    return event["event"].endswith(STARTED) or event["event"] in ENDS


def _end_us(plan: Json, started: Json, following: Sequence[Json]) -> int:
    """Return the end of what ``started``: the following event or its plan's end, if earlier."""
    end_s = min([plan["finished_s"], *(event["at_s"] for event in following)])
    return _us(max(end_s, started["at_s"]))


def _waits(lane: int, plans: Sequence[Json]) -> Iterator[Json]:
    """Return the waits: from the end of a plan to the device's next, or to the round's end."""
    for plan, after in zip(plans, [*plans[1:], None], strict=True):
        ends_s = [plan["finished_s"] + plan["waiting_s"]] + ([after["started_s"]] if after else [])
        yield from _slice(DEVICES, lane, "wait", (_us(plan["finished_s"]), _us(min(ends_s))), {})


def _passes(lane: int, span: tuple[int, int], plan: Json) -> Iterator[Json]:
    """Return the training slice cut into its passes, each the sum over all local steps.

    The passes of the single steps alternate; their order here is that within one step.
    """
    first_us, last_us = span
    start_us = first_us
    for name in PASSES:
        share = plan.get(f"{name}_share", math.nan)
        if math.isnan(share):
            return
        end_us = min(last_us, start_us + round(share * (last_us - first_us)))
        yield from _slice(DEVICES, lane, name, (start_us, end_us), {"share_of_training": share})
        start_us = end_us


def _of_plan(plan: Json) -> Json:
    """Return what the reader of a lane wants to know of a plan."""
    return {key: _plain(plan[key]) for key in ("round", *SHOWN) if key in plan}


def _details(event: Json) -> Json:
    """Return what an event says beside its instant, name, round and device."""
    usual = ("at_s", "event", "round", "device")
    return {key: value for key, value in event.items() if key not in usual}


def _slice(
    process: int, lane: int, name: str, span_us: tuple[int, int], args: Mapping[str, Any]
) -> Iterator[Json]:
    """Return a stretch of time; nothing where it rounds to no microsecond."""
    start_us, end_us = span_us
    if end_us > start_us:
        event = {"ph": "X", "pid": process, "tid": lane, "ts": start_us, "dur": end_us - start_us}
        color = {"cname": COLORS[name]} if name in COLORS else {}
        yield event | {"name": name, "cat": "fedclock", **color, "args": dict(args)}


def _instant(process: int, lane: int, event: Json) -> Json:
    """Return a mark in a lane."""
    where = {"ph": "i", "pid": process, "tid": lane, "ts": _us(event["at_s"]), "s": "t"}
    return where | {"name": event["event"], "cat": "fedclock", "args": _details(event)}


def _counter(name: str, at_s: Any, values: Mapping[str, float]) -> Json:
    return {"ph": "C", "pid": SERVER, "ts": _us(at_s), "name": name, "args": dict(values)}


def _meta(name: str, process: int, args: Json, lane: int = 0) -> Json:
    return {"ph": "M", "pid": process, "tid": lane, "ts": 0, "name": name, "args": args}


def _us(at_s: Any) -> int:
    """Return the whole microsecond nearest to an instant."""
    return round(float(at_s) * 1e6)


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it: None in place of NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
