"""For one fault in one row of a file of any length, the error names that row and what is wrong."""

import json
import pickle
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.traces.trace_files import DAY_MS, NAMES, UCC_HEADER, ucc_row, write
from traces.importers import FORMATS, import_files

EPOCH = datetime(2020, 2, 14, 9, 0, 0)


def stamp(k: int) -> str:
    return (EPOCH + timedelta(seconds=k)).strftime("%Y.%m.%d_%H.%M.%S")


# Format -> (header, row k). Every row is valid, and so is a file of any number of them.
ROWS = {
    "mahimahi": ("", lambda k: f"{1000 + 10 * k}\n"),
    "pensieve": ("", lambda k: f"{k}.5\t1.25\n"),
    "lumos5g": ("", lambda k: f"{k} {100 + k}\n"),
    "puffer": ("", lambda k: f"{2 * k} 0.5\n"),
    "ghent": ("", lambda k: f"{1453121790686 + 1000 * k} {9000 + 1000 * k} 51.0 3.7 250000 1000\n"),
    "hsdpa": ("", lambda k: f"{1289406399 + k} {9000 + 1000 * k} 59.8 10.7 250000 1000\n"),
    "ucc": (UCC_HEADER, lambda k: ucc_row(stamp(k), 8000)),
    "csv": ("time_s,downlink_mbps,uplink_mbps\n", lambda k: f"{k},8,1\n"),
    "availability": (
        "device_id,start_s,end_s,state\n",
        lambda k: f"a,{100 * k},{100 * k + 60},online\n",
    ),
    "stunner": ("", lambda k: f"u{k} 1 1402358400000 2 3600000 {DAY_MS - 3_600_000}\n"),
    "ai-benchmark": ("device,ai_score\n", lambda k: f"phone {k},{100 + k}\n"),
}

WORD, EMPTY, NAN, INF, HUGE, NEGATIVE, LESS, CUT = (
    "a word", "nothing", "nan", "inf", "huge", "negative", "time backwards", "cut short",
)  # fmt: skip
TEXT_OF = {WORD: "abc", EMPTY: "", NAN: "nan", INF: "inf", HUGE: "9" * 40, NEGATIVE: "-5"}

# Format -> (separator, {column: the faults that must be refused there}).
FAULTS = {
    "mahimahi": (None, {0: (WORD, NAN, INF, HUGE, NEGATIVE, LESS)}),
    # A negative rate is left out and counted: some published files have them.
    "pensieve": (None, {0: (WORD, NAN, INF, HUGE, NEGATIVE, LESS), 1: (WORD, NAN, INF, HUGE, CUT)}),
    "lumos5g": (None, {0: (WORD, NAN, INF, HUGE, NEGATIVE, LESS), 1: (WORD, NAN, INF, HUGE, CUT)}),
    "puffer": (None, {0: (WORD, NAN, INF, HUGE, NEGATIVE, LESS), 1: (WORD, NAN, INF, HUGE, CUT)}),
    "ghent": (
        None,
        {
            1: (WORD, NAN, INF, HUGE, NEGATIVE, LESS),
            4: (WORD, NAN, INF, HUGE, NEGATIVE, CUT),
            5: (WORD, NAN, INF, HUGE, NEGATIVE, CUT),
        },
    ),
    "hsdpa": (
        None,
        {
            1: (WORD, NAN, INF, HUGE, NEGATIVE, LESS),
            4: (WORD, NAN, INF, HUGE, NEGATIVE, CUT),
            5: (WORD, NAN, INF, HUGE, NEGATIVE, CUT),
        },
    ),
    "ucc": (",", {0: (WORD, EMPTY, LESS), 12: (WORD, EMPTY, NAN, INF, HUGE, NEGATIVE, CUT)}),
    "csv": (
        ",",
        {
            0: (WORD, EMPTY, NAN, INF, HUGE, NEGATIVE, LESS),
            1: (WORD, EMPTY, NAN, INF, HUGE, NEGATIVE, CUT),
            2: (WORD, EMPTY, NAN, INF, HUGE, NEGATIVE, CUT),
        },
    ),
    "availability": (
        ",",
        {
            0: (EMPTY,),
            1: (WORD, EMPTY, NAN, INF, HUGE, NEGATIVE, LESS),  # LESS makes intervals overlap
            2: (WORD, EMPTY, NAN, INF, HUGE, NEGATIVE, CUT),
            3: (WORD, EMPTY, CUT),
        },
    ),
    "stunner": (
        None,
        {
            1: (WORD, NAN, NEGATIVE),
            2: (WORD, NAN, HUGE, NEGATIVE),
            4: (WORD, NAN, INF, HUGE, NEGATIVE, CUT),
            5: (WORD, NAN, INF, HUGE, NEGATIVE, CUT),
        },
    ),
    # An empty score is valid and means that it is not known.
    "ai-benchmark": (",", {0: (EMPTY,), 1: (WORD, NAN, INF, HUGE, NEGATIVE, CUT)}),
}
CASES = [
    (name, column, fault)
    for name, (_, columns) in FAULTS.items()
    for column, faults in columns.items()
    for fault in faults
]


def broken(name: str, num_rows: int, at: int, column: int, fault: Any) -> str:
    """Return the file with the fault in row ``at``."""
    header, row = ROWS[name]
    separator, _ = FAULTS[name]
    rows = [row(k) for k in range(num_rows)]
    fields = rows[at].rstrip("\n").split(separator)
    if fault == CUT:
        fields = fields[:column]
    elif fault == LESS:
        fields[column] = row(at - 2).rstrip("\n").split(separator)[column]
    else:
        fields[column] = TEXT_OF[fault]
    rows[at] = (separator or " ").join(fields) + "\n"
    return header + "".join(rows)


@pytest.mark.parametrize("name", ROWS)
def test_rows_without_a_fault_are_imported(tmp_path: Path, name: str) -> None:
    header, row = ROWS[name]
    path = write(tmp_path, NAMES.get(name, "mine.dat"), header + "".join(map(row, range(9))))
    assert import_files(name if name in FORMATS else "csv", [path])


@pytest.mark.parametrize(("name", "column", "fault"), CASES)
def test_fault_is_refused_with_its_line(tmp_path: Path, name: str, column: int, fault: Any) -> None:
    @settings(max_examples=6)
    @given(st.integers(3, 40), st.data())
    def any_row(num_rows: int, data: st.DataObject) -> None:
        at = data.draw(st.integers(2, num_rows - 1))
        content = broken(name, num_rows, at, column, fault)
        path = write(tmp_path, NAMES.get(name, "mine.dat"), content)
        line = at + 1 + bool(ROWS[name][0])
        with pytest.raises(ValueError, match=rf"{path.name}, line {line}: .*found"):
            import_files(name if name in FORMATS else "csv", [path])

    any_row()


CLIENT_FAULTS = [
    ("fedscale-capacity", "computation", value)
    for value in ("fast", -1, 0, float("nan"), float("inf"), 10**400, None, True, [1])
] + [
    ("fedscale-behave", key, value)
    for key, values in {
        "finish_time": ("late", -1, 0, float("nan"), 10**400, None, [1]),
        "active": ("x", None, [0, 5], [30, 5], [-5, 40], [0, float("nan")], [0, 10], [None, 40]),
        "inactive": ([20], [20, 10**7], ["a", 90], 5),
    }.items()
    for value in values
]


@pytest.mark.parametrize(("name", "key", "value"), CLIENT_FAULTS)
def test_fault_in_a_pickle_is_refused_with_its_client(
    tmp_path: Path, name: str, key: str, value: Any
) -> None:
    entry = {
        "fedscale-capacity": {"computation": 100.0, "communication": 8000.0},
        "fedscale-behave": {"active": [0, 40], "inactive": [20, 90], "finish_time": 86400},
    }[name]
    if key == "active" and value == [0, 5]:  # overlapping: the second begins before the first ends
        value = [0, 15]
    elif key == "active" and value == [0, 10]:
        value = [25, 40]  # begins after it ends
    clients = {1: entry, 2: {**entry, key: value}, 3: entry}
    path = write(tmp_path, "mine.dat", pickle.dumps(clients))
    with pytest.raises(ValueError, match=r"mine\.dat, client 2: .*found"):
        import_files(name, [path])


@pytest.mark.parametrize(
    "messages",
    [
        7, None, [1], "yesterday\twifi", "2020-01-29 22:10:03", "2020-13-29 22:10:03\twifi", "",
        "2020-01-29 22:10\twifi", {"a": 1},
    ],
)  # fmt: skip
def test_fault_in_state_traces_is_refused_with_its_device(tmp_path: Path, messages: Any) -> None:
    good = {"model": "A", "messages": "2020-01-29 22:10:03\twifi\n"}
    content = json.dumps({"0": good, "1": {"model": "A", "messages": messages}})
    path = write(tmp_path, "mine.dat", content)
    with pytest.raises(ValueError, match=r"mine\.dat, device '?1'?.*found"):
        import_files("flash", [path])


# Files that once broke an importer or its message.
CORPUS = {
    "a client's id below 0": (
        "fedscale-capacity",
        pickle.dumps({-1: None}),
        r"client -1: .*found -1",
    ),
    "a clock that was set ahead by a lifetime": (
        "flash",
        b'{"0": {"messages": "2020-01-29 22:10:03\\twifi\\n2090-01-29 22:11:41\\tscreen_lock"}}',
        r"device '0': messages must lie within 11574 days, found 25569",
    ),
    "nothing but a stop": ("fedscale-behave", b"N.", r"expected a dict of clients, found None"),
}


@pytest.mark.parametrize(("name", "content", "message"), CORPUS.values(), ids=CORPUS)
def test_what_broke_once_is_refused_in_full(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        import_files(name, [write(tmp_path, "mine.dat", content)])
