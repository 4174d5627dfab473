"""Packs the plans of runs into a page: one block of compressed JSON a run."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from analysis import units
from analysis.metrics.definitions import scale_of
from analysis.runs.files import Json
from analysis.runs.load import Run

MAX_PLANS = 50_000  # plans of one run in a page, which take some 2 MB of it


class Column(NamedTuple):
    """A column is one of the table that shows a round's plans."""

    name: str  # the column's name in clients.parquet
    title: str
    size: float = 1.0  # the size of the unit in the title
    is_text: bool = False


COLUMNS = (
    Column("device_id", "Device"),
    Column("outcome", "Outcome", is_text=True),
    Column("profile", "Profile", is_text=True),
    Column("link", "Link", is_text=True),
    Column("download_s", "Download (s)"),
    Column("train_s", "Training (s)"),
    Column("upload_s", "Upload (s)"),
    Column("waiting_s", "Wait (s)"),
    Column("offline_s", "Offline (s)"),
    Column("staleness", "Staleness"),
    Column("num_shrinks", "Shrunk"),
    Column("depth", "Depth"),
    Column("num_terms_trained", "Terms trained"),
    Column("mean_weight_bits", "Weight bits"),
    Column("num_quantized_blocks", "Packed blocks"),
    Column("mean_upload_bits", "Upload bits"),
    Column("peak_memory_bytes", "Peak (MB)", 1e6),
    Column("memory_budget_bytes", "Budget (MB)", 1e6),
    Column("download_bytes", "Down (MB)", 1e6),
    Column("upload_bytes", "Up (MB)", 1e6),
    Column("battery_share", "Battery (%)", 0.01),
    Column("train_loss", "Training loss"),
)
LANE = 2  # the index of the column before which the page draws the phases of a plan
TIMES = (Column("opened_s", "Opened (s)"), Column("duration_s", "Lasted (s)"))
ROUND_COLUMNS = (
    Column("loss", "Loss"),
    Column("num_aggregated", "Aggregated"),
    Column("num_oom", "Out of memory"),
    Column("num_late", "Late"),
    Column("num_offline", "Offline"),
    Column("num_crashed", "Crashed"),
    Column("num_lost", "Lost on the link"),
    Column("num_rejected", "Rejected"),
    Column("num_shrunk", "Shrunk"),
    Column("num_sat_out", "Sat out"),
    Column("waiting_s", "Mean wait (s)"),
)
PHASES = (("download", "download_s"), ("train", "train_s"), ("upload", "upload_s"))


def columns_of(runs: Sequence[Run]) -> list[Column]:
    """Return the columns that every one of these runs has, since older runs lack some."""
    return [column for column in COLUMNS if all(column.name in run.clients for run in runs)]


def inspection(runs: Sequence[Run]) -> Json:
    """Return what the page's script needs to show any round of any run."""
    columns = columns_of(runs)
    return {
        "lane": LANE,
        "columns": [{"name": column.name, "is_text": column.is_text} for column in columns],
        "runs": [_packed(run, columns) for run in runs],
    }


def _packed(run: Run, columns: Sequence[Column]) -> Json:
    """Return the rounds of a run, and its plans by round, from the first on while there is room."""
    by_round: dict[int, list[Json]] = defaultdict(list)
    clients = run.clients.sort_values(["round", "device_id"], kind="stable")
    for row in clients.head(MAX_PLANS).to_dict("records"):
        by_round[int(row["round"])].append(_plan({str(k): v for k, v in row.items()}, columns))
    rounds = list(_rounds(run))
    is_cut = len(clients) > MAX_PLANS
    num_shown = int(clients["round"].iloc[MAX_PLANS]) if is_cut else len(rounds)
    plans = [by_round[number] for number in range(num_shown)]
    text = json.dumps({"rounds": rounds, "plans": plans}, allow_nan=False, separators=(",", ":"))
    # mtime=0 leaves out the time of day, so that the same runs give the same page.
    packed = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
    note = f"The page carries the plans of rounds before {num_shown}; the run folder has all."
    return {"packed": packed, "num_shown": num_shown, "note": note if is_cut else ""}


def _plan(row: Json, columns: Sequence[Column]) -> Json:
    """Return one plan: its cells, its start, and its phases with their lengths."""
    parts = [[kind, _number(row[name])] for kind, name in PHASES]
    waited = [["wait", _number(row["waiting_s"])]]
    return {
        "cells": [
            str(row[column.name]) if column.is_text else _number(row[column.name], column.size)
            for column in columns
        ],
        "start": round(row["started_s"], 6),  # six significant digits are too few late in a run
        "parts": [part for part in parts + waited if part[1]],
    }


def _rounds(run: Run) -> Iterator[Json]:
    """Return for each round the numbers that stand above its plans."""
    unit = scale_of(run.metric).unit(run.rounds[run.metric.name])
    judged = Column(run.metric.name, units.title(run.metric.title, unit), unit.size)
    columns = [column for column in (*TIMES, judged, *ROUND_COLUMNS) if column.name in run.rounds]
    for row in run.rounds.to_dict("records"):
        yield {column.title: _number(row[column.name], column.size) for column in columns}


def _number(value: Any, size: float = 1.0) -> float | int | None:
    """Return the number in its unit, six digits of it; None where there is none."""
    scaled = float(value) / size
    if not math.isfinite(scaled):
        return None
    return int(scaled) if scaled.is_integer() else float(f"{scaled:.6g}")
