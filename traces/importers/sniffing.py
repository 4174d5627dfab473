"""Guesses the format of a file from its beginning, for an error message that names it."""

from __future__ import annotations

import re
from pathlib import Path

_HEAD_BYTES = 65536
_NUMBER = r"-?\d+(\.\d*)?([eE][-+]?\d+)?"
_FIRST_LINES = (
    (r"Timestamp[,\t].*\bDL_bitrate\b.*", "ucc"),
    (r"(.*,)?time_m?s(,.*)?", "csv"),
    (r"device_id,start_s,end_s,state", "csv"),
    (r"device,.*_score.*", "ai-benchmark"),
    (rf"\d{{13}}\s+\d+\s+{_NUMBER}\s+{_NUMBER}\s+\d+\s+\d+", "ghent"),
    (rf"\d{{10}}\s+\d+\s+{_NUMBER}\s+{_NUMBER}\s+\d+\s+\d+", "hsdpa"),
    (r"\S+\s+[01]\s+\d{12,13}\s+-?\d+(\.\d+)?(\s+\d+)+", "stunner"),
    (rf"{_NUMBER}\s+{_NUMBER}", "pensieve"),
    (rf"{_NUMBER}[,\s]+[KMGkmg]?(bit|byte|Byte)s?/s(ec)?", "rates"),
    (r"\d+", "mahimahi"),
)
"""Patterns of the first line and the formats that they belong to, the most particular first."""


def sniff(path: Path) -> str | None:
    """Return the name of the format that a file looks like, None if it looks like none."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return None
    if head.startswith(b"PAR1"):
        return "parquet"
    if b"communication" in head and b"computation" in head:
        return "fedscale-capacity"
    if b"inactive" in head and b"finish_time" in head:
        return "fedscale-behave"
    text = head.decode("utf-8-sig", errors="replace").lstrip()
    if text.startswith(("{", "[")):
        if '"messages"' in text:
            return "flash"
        return "ai-benchmark" if re.search(r'"(AI_Score|[^"]+": *\d+[,}\n])', text) else None
    first = text.split("\n", 1)[0].strip()
    for pattern, name in _FIRST_LINES:
        if re.fullmatch(pattern, first[:2000].strip(), re.ASCII):
            return name
    return None
