"""Reads the files of a finished run folder, and says what is wrong where one cannot be read."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from pyarrow import ArrowException

from analysis.runs.columns import check_types, read_columns
from devices.tasks.registry import TASKS, UNNAMED_METRIC
from devices.tasks.task import Metric
from simulator.config.paths import read_small
from simulator.config.plain_yaml import parse_yaml
from simulator.config.problems import UserError
from simulator.config.schema import READ_ALONE
from simulator.config.types import Title
from simulator.log.manifest import FORMAT, lost_files
from traces.options import holds, in_words
from traces.text import parse_json

FILES = (
    "manifest.json",
    "config.yaml",
    "devices.parquet",
    "rounds.parquet",
    "clients.parquet",
    "events.jsonl",
)
MANIFEST_KEYS = {
    "label": str, "strategy": str, "seed": int, "conditions_hash": str, "config_hash": str,
    "model": dict, "data": dict,
}  # fmt: skip
NAMES = ("experiment", "label", "conditions_hash", "config_hash")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""The pattern of a name in a manifest, to which the writer of a manifest keeps too."""

DEVICE_COLUMNS = ("device_id", "profile", "link", "memory_budget_bytes")
ROUND_COLUMNS = (
    "round", "opened_s", "closed_s", "duration_s", "loss", "num_aggregated",
    "num_sat_out", "num_oom", "num_late", "waiting_s", "download_bytes", "upload_bytes", "energy_j",
)  # fmt: skip
CLIENT_COLUMNS = (
    "round", "device_id", "profile", "link", "outcome", "started_s", "download_s", "train_s",
    "upload_s", "finished_s", "waiting_s", "download_bytes", "upload_bytes",
    "memory_budget_bytes", "peak_memory_bytes",
    "memory_weights_bytes", "memory_adapters_bytes", "memory_gradients_bytes",
    "memory_optimizer_bytes", "memory_activations_bytes", "memory_transient_bytes",
    "memory_head_bytes", "depth", "num_quantized_blocks", "mean_weight_bits", "num_terms_trained",
    "mean_upload_bits", "staleness", "energy_compute_j", "energy_radio_j", "energy_idle_j",
)  # fmt: skip
REQUIRED = {"devices": DEVICE_COLUMNS, "rounds": ROUND_COLUMNS, "clients": CLIENT_COLUMNS}
DEFAULTS: dict[str, dict[str, Any]] = {
    "devices": {
        f"{what}_{task.metrics[0].name}": math.nan
        for what in ("expected", "own")
        for task in TASKS.values()
    },
    "rounds": dict.fromkeys(("num_offline", "num_crashed", "num_lost", "num_rejected"), 0),
    "clients": {"offline_s": 0.0, "battery_share": math.nan},
}
"""Columns that older runs or other tasks lack, with the values that are filled in for them."""

Json = dict[str, Any]  # an object of JSON or YAML, with values of any kind


class RunError(UserError):
    """This error says which run folder cannot be read or which runs cannot be compared, and why."""


class UnfinishedRunError(RunError):
    """This error says that a folder is a run that has not ended."""


def read_manifest(path: Path) -> Json:
    """Return the manifest of a finished run whose files are all there.

    Raises RunError, or UnfinishedRunError where the run has not ended.
    """
    if not (path / "manifest.json").is_file():
        raise RunError(f"{path} is not a run folder: it holds no manifest.json")
    _check_files(path)
    manifest = _mapping(path / "manifest.json")
    written = manifest.get("format")
    if not isinstance(written, int) or not 1 <= written <= FORMAT:
        raise RunError(
            f"{path}: the run folder's format must be at most {FORMAT}, got {written};"
            " read it with the version of FedClock that wrote it"
        )
    if manifest.get("status") != "done":
        error = f" ({_shown(manifest['error'])})" if "error" in manifest else ""
        raise UnfinishedRunError(
            f"{path}: a run must have ended (status 'done'), got {manifest.get('status')!r}{error};"
            " run its config again to finish it"
        )
    if missing := [key for key in MANIFEST_KEYS if key not in manifest]:
        raise RunError(f"{path / 'manifest.json'} lacks {', '.join(missing)}")
    for key, kind in MANIFEST_KEYS.items():
        if type(manifest[key]) is not kind:  # isinstance would accept True as an int
            raise RunError(
                f"{path / 'manifest.json'} is damaged: {key} must be a {kind.__name__}, got "
                f"{manifest[key]!r:.60}"
            )
    for key in NAMES:
        value = manifest.get(key)
        if isinstance(value, str) and not NAME.fullmatch(value):
            raise RunError(
                f"{path / 'manifest.json'} is damaged: {key} must be a name of letters, digits, "
                f"'.', '_' and '-', got {_shown(manifest[key])}"
            )
    if not 0 <= manifest["seed"] < 2**63:
        raise RunError(f"{path / 'manifest.json'} is damaged: seed must be from 0 to 2^63 - 1")
    if not str(manifest["strategy"]).isprintable():
        raise RunError(f"{path / 'manifest.json'} is damaged: strategy must be printable")
    for name in FILES:
        if not (path / name).is_file():
            raise RunError(f"run folder {path} lacks {name}")
    if lost := lost_files(path, manifest):
        raise RunError(
            f"run folder {path}: every file must be as the run wrote it, but "
            f"{_shown(', '.join(lost))} is gone or differs from its SHA-256 in manifest.json; run "
            f"its config again"
        )
    return manifest


def _check_files(path: Path) -> None:
    """Raise RunError where a file of the run is no regular file, or is a link to elsewhere."""
    for name in FILES:
        file = path / name
        if os.path.lexists(file) and not stat.S_ISREG(os.lstat(file).st_mode):
            raise RunError(
                f"{file} must be a regular file, not a link, a folder or a pipe: a run folder "
                f"holds its files itself"
            )


def _shown(value: object) -> str:
    """Return a value of a foreign file as a message may show it: short, and on one line."""
    text = str(value)
    return text[:300] if text.isprintable() else f"{text!r:.300}"


def training(manifest: Json) -> str:
    """Return ``real`` for a run that trained, and ``none`` for one of timing only."""
    return "none" if manifest.get("training_dtype", "not said") is None else "real"


def first_metric(path: Path, manifest: Json) -> Metric:
    """Return the first metric of the run's task, by which the run is judged.

    A manifest of an older version names none, and its run is of the one task that there was. Raises
    RunError where the metric is none of a task's.
    """
    if "task" not in manifest:
        return UNNAMED_METRIC
    known = [task.metrics[0] for task in TASKS.values()]
    try:
        entry = manifest["task"]["metrics"][0]
        named = Metric(entry["name"], entry["unit"], entry["better"])
        return known[known.index(named)]
    except (LookupError, TypeError, ValueError):
        raise RunError(
            f"{path / 'manifest.json'} is damaged: the first of task.metrics must be that "
            f"of a task ({', '.join(dict.fromkeys(one.name for one in known))}) with its unit and "
            f"direction, got {_shown(manifest['task'])}"
        ) from None


def read_config(path: Path) -> Json:
    """Return the resolved config of the run in this folder, with the manifest's titles and targets.

    Raises RunError where either is damaged.
    """
    config = _mapping(path / "config.yaml")
    alone = _mapping(path / "manifest.json").get("read_alone")
    if alone is None:  # the run was written by an earlier version
        return config
    if not isinstance(alone, dict):
        raise RunError(f"{path / 'manifest.json'} is damaged: read_alone must be a mapping")
    return {key: value for key, value in config.items() if key not in READ_ALONE} | {
        key: value for key, value in alone.items() if key in READ_ALONE
    }


def title_of(path: Path, config: Json, key: str) -> str | None:
    """Return a title for readers of the run in this folder; None where its config gives none.

    Raises RunError where it is none that a config may give.
    """
    title = config.get(key)
    if title is not None and not holds(Title, title):
        raise RunError(f"{path / 'manifest.json'} is damaged: {key} must be {in_words(Title)}")
    return title


def place_of(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return where a run stands among those of its experiment; empty where that is not known."""
    place = config.get("place")
    numbers = place if isinstance(place, list) else []
    return tuple(numbers) if all(type(number) is int for number in numbers) else ()


def check_table(path: Path, table: str) -> None:
    """Raise RunError unless this table of the run can be opened and has the columns it must.

    Reads the schema alone: a wrong value is found when its rows are asked for.
    """
    file = path / f"{table}.parquet"
    try:
        schema = pq.read_schema(file)
        _require(file, REQUIRED[table], schema.names)
        check_types(table, schema)
    except (OSError, ValueError, ArrowException) as error:
        raise _damaged(file, error) from error


def read_table(
    path: Path,
    table: str,
    columns: Sequence[str] | None = None,
    *,
    where_there: Sequence[str] = (),
) -> pd.DataFrame:
    """Return a table of the run, or these columns of it; what older runs lack is filled in.

    Columns of ``where_there`` are read besides from a table that has them.

    Raises RunError where the file is damaged, or a column is neither there nor has a default.
    """
    file, defaults = path / f"{table}.parquet", DEFAULTS[table]
    try:
        there = pq.read_schema(file).names
        _require(file, REQUIRED[table], there)
        wanted = [*there, *(name for name in defaults if name not in there)]
        if columns is not None:
            wanted = [*columns, *(name for name in where_there if name in there)]
        lacking = [name for name in wanted if name not in there]
        _require(file, [name for name in lacking if name not in defaults], there)
        stored = read_columns(file, table, [name for name in wanted if name in there])
        frame: pd.DataFrame = stored.to_pandas(use_threads=False)
    except (OSError, ValueError, ArrowException) as error:
        raise _damaged(file, error) from error
    for name in lacking:
        frame[name] = np.full(stored.num_rows, defaults[name])
    return frame if list(frame) == wanted else frame[wanted]


def _damaged(file: Path, error: Exception) -> RunError:
    said = " ".join(str(error).split())
    return error if isinstance(error, RunError) else RunError(f"{file} is damaged: {said:.300}")


def _require(file: Path, names: Sequence[str], there: Sequence[str]) -> None:
    if missing := [name for name in names if name not in there]:
        raise RunError(f"{file} lacks the columns {', '.join(missing)}; it has {', '.join(there)}")


def _mapping(path: Path) -> Json:
    """Return the mapping in a JSON or YAML file of a run, whose texts can all be written out."""
    parse = parse_json if path.suffix == ".json" else parse_yaml
    try:
        content = parse(read_small(path))
        json.dumps(content, ensure_ascii=False).encode()  # raises for a lone surrogate
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is damaged: it must hold a mapping, got {type(content).__name__}")
    return content
