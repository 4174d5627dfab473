"""Run folders, read back: one finished run, or several that may stand side by side."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.runs.columns import LARGEST_S
from analysis.runs.differences import settings_that_differ
from analysis.runs.files import (
    Json,
    RunError,
    first_metric,
    read_config,
    read_manifest,
    read_table,
    title_of,
    training,
)
from devices.tasks.classification import ACCURACY
from devices.tasks.task import Metric
from simulator.config.experiment import flatten

MAX_LINE = 1_000_000
"""Characters of a line of the event log; a longer one is cut, and so no event."""

EVENT_KEYS: dict[str, Any] = {
    "at_s": (int, float),
    "event": str,
    "round": int,
    "device": (int, type(None)),
}


@dataclass(frozen=True, eq=False)
class Run:
    """One finished run. The columns of the frames are those of the run folder."""

    path: Path
    label: str
    manifest: Json
    config: Json
    devices: pd.DataFrame  # one row a device of the fleet
    rounds: pd.DataFrame  # one row a round; round 0 is the initial model
    clients: pd.DataFrame  # one row a plan handed out
    metric: Metric = ACCURACY  # the first of its task, by which it is judged

    @property
    def strategy(self) -> str:
        """The kind of its scheduler, e.g. ``"fedquad"``."""
        return str(self.manifest["strategy"])

    @property
    def strategy_title(self) -> str | None:
        """The name for readers that the config gives its strategy; None where it gives none."""
        return self.config.get("strategy_title")

    def events(self) -> Iterator[Json]:
        """The event log, line by line, in order of time. Raises RunError on a damaged line."""
        file = self.path / "events.jsonl"
        known = {None, *self.devices["device_id"].tolist()}
        # A byte that is no UTF-8 makes its line no event, rather than the reading fail.
        with file.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(iter(partial(lines.readline, MAX_LINE), ""), start=1):
                try:
                    event = json.loads(line)
                except (ValueError, RecursionError) as error:
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
    """The run folders among ``paths`` and directly below them, each once, in the order given."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise RunError(f"a run folder must be a directory, got {path}, which is not there")
        if (path / "manifest.json").is_file() or (path / "config.yaml").is_file():
            found.append(path)
            continue
        names = ("manifest.json", "config.yaml")  # either is enough: what lacks is said later
        below = sorted({file.parent for name in names for file in path.glob(f"*/{name}")})
        if not below:
            raise RunError(
                f"{path} is not a run folder and holds none: no manifest.json in it or one below"
            )
        found.extend(below)
    return list({path.resolve(): path for path in found}.values())


def load_run(path: Path) -> Run:
    """The run in this folder. Raises RunError, or UnfinishedRunError where it has not ended."""
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


def load_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in these folders, labels distinct. Raises RunError if they met unlike worlds."""
    runs = [load_run(path) for path in find_runs(paths)]
    require_same_conditions(runs)
    return distinct_labels(runs)


def load_finished(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """As load_runs, without the runs that have not ended or are damaged, and why for each.

    Raises RunError if none is left.
    """
    runs, left_out = [], []
    for path in find_runs(paths):
        try:
            runs.append(load_run(path))
        except RunError as error:
            left_out.append(str(error))
    if not runs:
        raise RunError("at least one run must have ended; " + "; ".join(left_out or ["got none"]))
    require_same_conditions(runs)
    return distinct_labels(runs), left_out


def require_same_conditions(runs: Sequence[Run]) -> None:
    """Raise RunError unless all runs had one model, data set, seed, fleet and traces.

    Neither may some of them have trained and others (``training: none``) not.
    """
    for run in runs[1:]:
        differences = _differences(runs[0], run)
        if differences:
            raise RunError(
                "runs that are compared must share model, data, training, seed, fleet and traces;"
                f" {runs[0].path} and {run.path} differ in " + "; ".join(differences)
            )


def distinct_labels(runs: Sequence[Run]) -> list[Run]:
    """The runs, those that share a label told apart by the hash of their config."""
    count = Counter(run.label for run in runs)
    return [
        replace(run, label=f"{run.label} {str(run.manifest['config_hash'])[:8]}")
        if count[run.label] > 1
        else run
        for run in runs
    ]


def _differences(one: Run, other: Run) -> list[str]:
    """What the two runs do not share, in words."""
    words = []
    trained = [training(run.manifest) for run in (one, other)]
    if trained[0] != trained[1]:  # of a run that trained nothing no accuracy is known
        words.append(f"training ({' / '.join(trained)})")
    if one.metric != other.metric:
        words.append(f"first metric ({one.metric.name} / {other.metric.name})")
    for name in ("model", "data"):
        left, right = (flatten(run.manifest[name]) for run in (one, other))
        keys = sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))
        words += [f"{name} {key} ({left.get(key)} / {right.get(key)})" for key in keys]
    one_seed, other_seed = (run.manifest["seed"] for run in (one, other))
    if one_seed != other_seed:
        words.append(f"seed ({one_seed} / {other_seed}; fedclock summary compares over seeds)")
    if one.manifest["conditions_hash"] != other.manifest["conditions_hash"] and not words:
        words.append(
            "the fleet, its traces or its data shards"
            + settings_that_differ(one.config, other.config)
        )
    return words


def _is_event(event: Any) -> bool:
    return isinstance(event, dict) and all(
        key in event and isinstance(event[key], kind) for key, kind in EVENT_KEYS.items()
    )
