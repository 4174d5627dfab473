"""Finds run folders, and reads a finished run back from one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.runs.columns import LARGEST_S
from analysis.runs.files import (
    Json,
    RunError,
    first_metric,
    read_config,
    read_manifest,
    read_table,
    title_of,
)
from devices.tasks.task import Metric
from simulator.log.manifest import TABLES
from traces.text import parse_json

MAX_LINE = 1_000_000
"""The most characters of a line of the event log; a longer one is reported as damaged."""

RUN_FOLDER = re.compile(r"-[0-9a-f]{8}-s\d+\Z")
"""The pattern with which the name of every run folder ends."""

EVENT_KEYS: dict[str, Any] = {
    "at_s": (int, float),
    "event": str,
    "round": int,
    "device": (int, type(None)),
}


@dataclass(frozen=True, eq=False)
class Run:
    """A run is read back from its folder; the frames have the columns of the tables there."""

    path: Path
    label: str
    manifest: Json
    config: Json
    devices: pd.DataFrame  # one row for each device of the fleet
    rounds: pd.DataFrame  # one row for each round; round 0 is the initial model
    clients: pd.DataFrame  # one row for each dispatched plan
    metric: Metric  # the first metric of its task, by which it is judged

    @property
    def strategy(self) -> str:
        """Return the kind of the run's scheduler, e.g. ``"fedquad"``."""
        return str(self.manifest["strategy"])

    @property
    def strategy_title(self) -> str | None:
        """Return the strategy's name for readers from the config; None where it gives none."""
        return self.config.get("strategy_title")

    def events(self) -> Iterator[Json]:
        """Yield the events of the log in order of time. Raises RunError on a damaged line."""
        file = self.path / "events.jsonl"
        known = {None, *self.devices["device_id"].tolist()}
        # Invalid UTF-8 is replaced, so that a damaged line is found by its number below.
        with file.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(iter(partial(lines.readline, MAX_LINE), ""), start=1):
                try:
                    event = parse_json(line)
                except ValueError as error:
                    raise RunError(f"{file}: line {number} is not JSON ({error})") from error
                if not _is_event(event):
                    raise RunError(
                        f"{file}: line {number} must be an event with {', '.join(EVENT_KEYS)}, got "
                        f"{line[:100]!r}"
                    )
                if event["device"] not in known or not 0 <= event["at_s"] <= LARGEST_S:
                    raise RunError(
                        f"{file}: line {number} must be of a device of the fleet, at an instant "
                        f"from 0 to {LARGEST_S:g} s, got {line[:100]!r}"
                    )
                yield event


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Return the run folders among ``paths`` and directly below them, each once, in that order."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise RunError(f"a run folder must be a directory, got {path}, which is not there")
        if (path / "manifest.json").is_file() or (path / "config.yaml").is_file():
            found.append(path)
            continue
        names = ("manifest.json", *TABLES)  # any of these makes a run; missing ones are named later
        below = {file.parent for name in names for file in path.glob(f"*/{name}")}
        below |= {one for one in path.iterdir() if RUN_FOLDER.search(one.name) and one.is_dir()}
        if not below:
            raise RunError(
                f"{path} is not a run folder and holds none: no manifest.json in it or one below"
            )
        found.extend(sorted(below))
    return list({path.resolve(): path for path in found}.values())


def load_run(path: Path) -> Run:
    """Return the run in this folder. Raises RunError, or UnfinishedRunError if it has not ended."""
    manifest, config = read_manifest(path), read_config(path)
    for key in ("title", "strategy_title"):
        title_of(path, config, key)
    run = Run(
        path=path,
        label=str(manifest["label"]),
        manifest=manifest,
        config=config,
        devices=read_table(path, "devices"),
        rounds=read_table(path, "rounds"),
        clients=read_table(path, "clients"),
        metric=first_metric(path, manifest),
    )
    if run.metric.name not in run.rounds:
        raise RunError(f"{path / 'rounds.parquet'} lacks the column {run.metric.name}")
    if not run.clients["device_id"].isin(run.devices["device_id"]).all():
        raise RunError(
            f"{path / 'clients.parquet'} is damaged: each plan must be of a device that "
            f"devices.parquet names"
        )
    return run


def _is_event(event: Any) -> bool:
    return isinstance(event, dict) and all(
        key in event and isinstance(event[key], kind) for key, kind in EVENT_KEYS.items()
    )
