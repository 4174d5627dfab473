"""Imports STUNNER session lists of the Gossip Learning Framework (``peersim_session_P.txt``).

A line is one window of one phone: the user, the first state (1 online, 0 offline), the start (epoch
in ms, UTC), the time zone in hours, and then the lengths in ms of sessions of alternating state.
Instant 0 becomes the local midnight before the window. A window is whole days long and repeats, so
every session keeps its time of day. The N-th line of a user becomes the device USER-N.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from traces.availability import AvailabilityTrace, device_id
from traces.importers.result import Availability, name_of
from traces.text import TextLine, excerpt, number, read_lines, whole_number

DAY_MS = 86_400_000
MAX_WINDOW_MS = 366 * DAY_MS
MAX_EPOCH_MS = 4.1e12
"""The year 2100."""


def read(path: Path) -> Availability:
    """Return the availability of one device for each line.

    Raises ValueError that names the file, the line, what was found and what is expected.
    """
    devices: dict[str, AvailabilityTrace] = {}
    seen = Counter[str]()
    for line in read_lines(path):
        user, trace = _device(line)
        seen[user] += 1
        devices[f"{user}-{seen[user]}"] = trace
    if not devices:
        raise ValueError(f"{path}, line 1: expected a user and sessions, found an empty file")
    return Availability(name_of(path), devices)


def _device(line: TextLine) -> tuple[str, AvailabilityTrace]:
    fields = line.text.split()
    if len(fields) < 5:
        raise ValueError(
            f"{line.where}: expected user, state, start, time zone and at least one session, "
            f"found {excerpt(line.text)}"
        )
    user, state, start, zone, *sessions = fields
    if state not in ("0", "1"):
        raise ValueError(f"{line.where}: the first state must be 0 or 1, found {excerpt(state)}")
    start_ms = whole_number(line.where, "start in ms", start, MAX_EPOCH_MS)
    zone_h = number(line.where, "time zone in hours", zone, 14, smallest=-12)
    lengths_ms = [
        whole_number(line.where, "a session in ms", text, MAX_WINDOW_MS) for text in sessions
    ]
    total_ms = sum(lengths_ms)
    if not 0 < total_ms <= MAX_WINDOW_MS or total_ms % DAY_MS:
        raise ValueError(
            f"{line.where}: the sessions must sum to whole days ({DAY_MS} ms each), "
            f"found {total_ms} ms; a line cut short looks like this"
        )
    trace_ms = _alternating(lengths_ms, state == "1")
    local_ms = (start_ms + round(zone_h * 3_600_000)) % DAY_MS
    from_midnight_ms = trace_ms.shifted(trace_ms.period_s - local_ms)
    in_seconds = zip(from_midnight_ms.start_s / 1000, from_midnight_ms.end_s / 1000, strict=True)
    return device_id(line.where, user), AvailabilityTrace.of(in_seconds, total_ms / 1000)


def _alternating(lengths_ms: list[int], is_online: bool) -> AvailabilityTrace:
    """Return the trace of sessions from the start of the window.

    Its unit is the millisecond, since whole numbers add up exactly.
    """
    intervals = []
    at_ms = 0
    for length_ms in lengths_ms:
        if is_online:
            intervals.append((at_ms, at_ms + length_ms))
        at_ms += length_ms
        is_online = not is_online
    return AvailabilityTrace.of(intervals, at_ms)
