"""Imports logs of G-NetTrack, which have about one row a second; UCC's 4G and 5G logs are such.

Columns are found by name, and separated by commas (UCC) or by tabs (as the app writes them). A rate
is that of the second that ends at its row. Of two rows in one second the larger rate is kept, since
the other covers a part of it. A missing second takes the next row's rate. Seconds without a
download are left out, and so are gaps longer than 10 s; a log without a State is taken for one
download. Only the downlink is kept: the uplink of a download is its acknowledgements.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from traces.importers.result import Recording, instant, name_of, steps
from traces.text import Row, excerpt, read_table
from traces.units import MAX_MBPS

COLUMNS = ("Timestamp", "DL_bitrate")
STATE = "State"
DOWNLOADING = ("D", "VD")
KNOWN_STATES = ("D", "VD", "V", "I")
NO_VALUE = "-"
MAX_FILL_S = 10
"""Longest gap between rows that is filled; a longer one is a break in the recording."""
_EPOCH = datetime(1970, 1, 1)


class _Second(NamedTuple):
    """A second of a log has one rate, and ends ``at_s`` seconds after the start of 1970."""

    at_s: int
    mbps: float
    is_download: bool


def read(path: Path) -> Recording:
    """Return the downlink in a log.

    Raises ValueError that names the file, the line, what was found and what is expected.
    """
    table = read_table(path)
    table.require(COLUMNS)
    seconds: list[_Second] = []
    for row in table.rows:
        second = _second(row)
        if second is None:
            continue
        if seconds and second.at_s < seconds[-1].at_s:
            raise ValueError(
                f"{row.where}: Timestamp must not go backwards, "
                f"found {row.fields['Timestamp']}, {seconds[-1].at_s - second.at_s} s earlier "
                f"than a row above it"
            )
        if seconds and second.at_s == seconds[-1].at_s:
            second = max(seconds.pop(), second, key=lambda one: (one.is_download, one.mbps))
        seconds.append(second)
    recording = _recording(path, seconds, len(table.rows))
    if STATE in table.columns:
        return recording
    note = "the log has no State: all of its seconds are taken for those of a download"
    return replace(recording, notes=(*recording.notes, note))


def _recording(path: Path, seconds: list[_Second], num_rows: int) -> Recording:
    durations: list[float] = []
    rates: list[float] = []
    left_out_s = gaps_s = 0
    before_s = seconds[0].at_s - 1 if seconds else 0
    for second in seconds:
        length_s = second.at_s - before_s
        if length_s > MAX_FILL_S:
            gaps_s += length_s - 1
            length_s = 1
        before_s = second.at_s
        if second.is_download:
            durations += [1.0] * length_s
            rates += [second.mbps] * length_s
        else:
            left_out_s += length_s
    where = f"{path}, lines 2 to {num_rows + 1}"
    if not rates:
        raise ValueError(
            f"{where}: expected rows with State {' or '.join(DOWNLOADING)} and a DL_bitrate, "
            f"found none"
        )
    notes = []
    if left_out_s:
        notes.append(f"left out: {left_out_s} s without a download")
    if gaps_s:
        notes.append(f"left out: {gaps_s} s in gaps longer than {MAX_FILL_S} s")
    return Recording(name_of(path), steps(where, durations, rates), notes=tuple(notes))


def _second(row: Row) -> _Second | None:
    """Return the second of one row, None where the row holds no rate."""
    stamp, state = row.fields["Timestamp"], row.fields.get(STATE, DOWNLOADING[0])
    at = instant(stamp, "%Y.%m.%d_%H.%M.%S")
    if at is None:
        raise ValueError(
            f"{row.where}: Timestamp must be YYYY.MM.DD_hh.mm.ss, found {excerpt(stamp)}"
        )
    if state not in KNOWN_STATES:
        raise ValueError(
            f"{row.where}: State must be one of {', '.join(KNOWN_STATES)}, found {excerpt(state)}"
        )
    if row.fields["DL_bitrate"] == NO_VALUE:
        return None
    kbps = row.number("DL_bitrate", MAX_MBPS * 1000)
    return _Second(int((at - _EPOCH).total_seconds()), kbps / 1000, state in DOWNLOADING)
