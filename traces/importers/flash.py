"""Imports FLASH's state traces: what 1000 phones reported, as JSON.

By FLASH's own rule a device is online while its screen is locked, it is on Wi-Fi and it is
charging. A condition is unknown before its first event, and all are after the device's last event;
unknown does not count as online. Instant 0 is the midnight before a device's first event, in its
local time, and its period is as many whole days as its events touch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from traces.availability import AvailabilityTrace, device_id
from traces.importers.result import Availability, DeviceTable, instant, name_of
from traces.text import excerpt, read_text
from traces.units import DAY_S, MAX_TIME_S

SETS = {
    "screen_lock": ("locked", True),
    "screen_unlock": ("locked", False),
    "battery_charged_on": ("charging", True),
    "battery_charged_off": ("charging", False),
    "wifi": ("wifi", True),
    **dict.fromkeys(("2g", "3g", "4g", "5g", "unknown"), ("wifi", False)),
}
"""The condition that an event (in lower case) sets; the screen and the battery level set none."""
CONDITIONS = ("locked", "charging", "wifi")
IGNORED = ("screen_on", "screen_off")

Event = tuple[datetime, str]


def read(path: Path) -> list[Availability | DeviceTable]:
    """Return when each phone was online, and a table of their models.

    Raises ValueError that names the file and device, what was found and what is expected.
    """
    devices, models, unknown = {}, [], set[str]()
    for name, entry in read_json_object(path).items():
        where = f"{path}, device {excerpt(name)}"
        if not isinstance(entry, dict) or "messages" not in entry:
            raise ValueError(f"{where}: expected an object with messages, found another value")
        events = [_event(path, name, line) for line in _messages(where, entry["messages"])]
        if not events:
            raise ValueError(f"{where}: expected at least one message, found none")
        met = {word for _, word in events} - {*SETS, *IGNORED}
        unknown |= {word for word in met if not word.endswith("%")}
        trace = _trace(events)
        if trace.period_s > MAX_TIME_S:
            raise ValueError(
                f"{where}: messages must lie within {MAX_TIME_S / DAY_S:.0f} days, found "
                f"{trace.period_s / DAY_S:.0f}"
            )
        devices[device_id(where, name)] = trace
        models.append((device_id(where, name), _model(where, entry.get("model", ""))))
    if not devices:
        raise ValueError(f"{path}, line 1: expected at least one device, found none")
    words = ", ".join(sorted(unknown)[:5])
    notes = (f"events that are not known and were ignored: {excerpt(words)}",) if unknown else ()
    table = DeviceTable(f"{name_of(path)}-devices", ("device_id", "model"), tuple(models))
    return [Availability(name_of(path), devices, notes), table]


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, whose values are unchecked.

    Raises ValueError that says where the file is no JSON object.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}, line 1: expected a JSON object, found another value")
    return value


def read_json(path: Path) -> Any:
    """Return the JSON value in a file. Raises ValueError that says where it is no JSON."""
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        found = excerpt(text[error.pos : error.pos + 20]) if text[error.pos :] else "its end"
        raise ValueError(
            f"{path}, line {error.lineno}: expected JSON, found {found} ({error.msg})"
        ) from None
    # JSON that is nested too deeply raises RecursionError, a number of too many digits ValueError.
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path}: expected JSON that can be read, found {error}") from None


def _messages(where: str, value: object) -> Iterator[tuple[int, str]]:
    """Return an iterator over the number and text of each line that is not blank."""
    lines = value.split("\n") if isinstance(value, str) else value
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ValueError(
            f"{where}: messages must be a text or a list of texts, found another value"
        )
    texts = (part for line in lines for part in line.split("\n"))
    return ((n, text) for n, text in enumerate(texts, start=1) if text.strip())


def _event(path: Path, name: str, line: tuple[int, str]) -> Event:
    number, text = line
    stamp, tab, word = text.strip().partition("\t")
    where = f"{path}, device {excerpt(name)}, message {number}"
    at = instant(stamp.strip(), "%Y-%m-%d %H:%M:%S")
    if at is None or not tab or not word.strip() or at.year < 1970 or at.year > 2100:
        raise ValueError(
            f"{where}: expected 'YYYY-MM-DD hh:mm:ss', a tab and an event, found {excerpt(text)}"
        )
    return at, word.strip().lower()


def _trace(events: list[Event]) -> AvailabilityTrace:
    """Return the trace of one device from its events, in any order and perhaps repeated."""
    # The sort is stable, so events of one second keep their order.
    events = sorted(events, key=lambda event: event[0])
    midnight = datetime.combine(events[0][0].date(), datetime.min.time())
    num_days = (events[-1][0] - midnight) // timedelta(days=1) + 1
    state = dict.fromkeys(CONDITIONS, False)
    intervals: list[tuple[float, float]] = []
    since_s: float | None = None
    for at, word in events:
        if word in SETS:
            condition, value = SETS[word]
            state[condition] = value
        at_s = (at - midnight).total_seconds()
        if all(state.values()):
            since_s = at_s if since_s is None else since_s
        elif since_s is not None:
            intervals.append((since_s, at_s))
            since_s = None
    if since_s is not None:
        intervals.append((since_s, (events[-1][0] - midnight).total_seconds()))
    return AvailabilityTrace.of(intervals, num_days * DAY_S)


def _model(where: str, value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(f"{where}: model must be printable text, found another value")
    return value
