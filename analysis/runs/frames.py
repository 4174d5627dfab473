"""Gives many finished runs as pandas frames, of which only what is asked for is read."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.runs.files import (
    REQUIRED,
    Json,
    RunError,
    check_table,
    first_metric,
    place_of,
    read_config,
    read_manifest,
    read_table,
    training,
)
from analysis.runs.load import Run, find_runs, load_run
from simulator.config.keys import flatten
from simulator.config.schema import NOT_SIMULATED
from traces.text import did_you_mean

MAX_AXES = 64
"""The most axes of a grid by which runs are sorted."""


@dataclass(frozen=True, eq=False)
class RunSet:
    """A run set names finished runs, and reads their folders anew whenever a table is asked for.

    ``runs`` has one row a run, indexed by ``run``: path, experiment, label, strategy, variant,
    seed, config_hash, conditions_hash, model, model_sha256, data, data_sha256, num_test,
    num_rounds, simulated_s, wall_s, and the final value of each task's metric. Runs of one variant
    differ in their seed alone. They stand in the order of the folders asked for; those below one
    folder in that of their config's strategies and of the grid they were swept over.
    """

    runs: pd.DataFrame
    left_out: tuple[str, ...] = ()  # the runs that could not be read, each with the reason

    @property
    def variants(self) -> list[str]:
        """Return the names of the variants, in order of their first run."""
        return list(dict.fromkeys(self.runs["variant"]))

    def where(self, **wanted: object) -> RunSet:
        """Return the runs that have these values in columns of ``runs`` or ``settings``.

        A set, list or tuple names several values. Raises RunError on a name that is in neither.
        """
        have = [self._have(name, value) for name, value in wanted.items()]
        return replace(self, runs=self.runs[[all(own) for own in self._each(have)]])

    def without(self, **unwanted: object) -> RunSet:
        """Return the runs that have none of these values, named as in ``where``."""
        have = [self._have(name, value) for name, value in unwanted.items()]
        return replace(self, runs=self.runs[[not any(own) for own in self._each(have)]])

    def values(self, name: str) -> list[str]:
        """Return the values of a column of ``runs`` or ``settings`` as texts, each once."""
        return list(dict.fromkeys(map(str, self._column(name))))

    def _have(self, name: str, value: object) -> list[bool]:
        """Return for each run whether its value of this name is this one, or one of these."""
        column = self._column(name)
        several = isinstance(value, set | tuple) or (
            isinstance(value, list) and not any(isinstance(one, list) for one in column)
        )
        values = list(value) if several else [value]  # type: ignore[call-overload]
        return [one in values for one in column]

    def _column(self, name: str) -> list[object]:
        if name in self.runs:
            return list(self.runs[name])
        configs = self._configs()
        if not any(name in config for config in configs):
            names = [*map(str, self.runs.columns), *map(str, self.settings().columns)]
            near = did_you_mean(name, names) or f"; there are {', '.join(names)}"
            raise RunError(f"runs must be chosen by a column or a setting, got {name}{near}")
        return [config.get(name) for config in configs]

    def _each(self, have: Sequence[list[bool]]) -> Iterable[tuple[bool, ...]]:
        return zip(*have, strict=True) if have else [()] * len(self.runs)

    def rounds(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the rounds of all runs, after the columns run, variant and seed."""
        return self._table("rounds", columns)

    def clients(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the dispatched plans of all runs, after the columns run, variant and seed."""
        return self._table("clients", columns)

    def devices(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the fleets of all runs, after the columns run, variant and seed."""
        return self._table("devices", columns)

    def settings(self) -> pd.DataFrame:
        """Return one row a run: the keys of the configs in which runs differ, but for the seed."""
        return pd.DataFrame(differing(self._configs()), index=self.runs.index)

    def _configs(self) -> list[dict[str, Any]]:
        """Return the config of each run by its dotted keys; one file is read for all its seeds."""
        kinds = self.runs.groupby(["label", "config_hash"], sort=False)
        configs = [flatten(read_config(Path(one))) for one in kinds["path"].first()]
        return [configs[k] for k in kinds.ngroup()]

    def _table(self, table: str, columns: Sequence[str] | None) -> pd.DataFrame:
        if self.runs.empty:
            raise RunError("at least one run must have ended; got none")
        frames = [read_table(Path(path), table, columns) for path in self.runs["path"]]
        lengths = [len(frame) for frame in frames]
        frame: pd.DataFrame = pd.concat(frames, ignore_index=True)
        for place, key in enumerate(("run", "variant")):
            names = pd.Series(self.runs.index if key == "run" else self.runs[key])
            codes, there = pd.factorize(names)  # keeps the order of first appearance
            column = pd.Categorical.from_codes(np.repeat(codes, lengths), there)
            frame.insert(place, key, pd.Series(column))
        frame.insert(2, "seed", np.repeat(self.runs["seed"].to_numpy(), lengths))
        return frame


def open_runs(paths: Sequence[Path]) -> RunSet:
    """Return the finished runs in (or directly below) these folders, by manifests and schemas.

    A run that has not ended, is damaged or stands twice is left out and named. Raises RunError
    where none is left.
    """
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    order = {run.resolve(): n for n, given in enumerate(paths) for run in find_runs([given])}
    seen: dict[tuple[object, ...], Path] = {}
    for path in find_runs(paths):
        try:
            manifest = read_manifest(path)
            for table in REQUIRED:
                check_table(path, table)
            row = _row(path, manifest)
            row["order"] = (order[path.resolve()], place_of(read_config(path)))
        except RunError as error:
            left_out.append(str(error))
            continue
        key = tuple(row[name] for name in ("experiment", "label", "config_hash", "seed"))
        if key in seen:
            left_out.append(f"{path}: the same run stands in {seen[key]} already")
            continue
        logging.getLogger("fedclock").info("read run %s", path)
        seen[key] = path
        rows.append(row)
    if not rows:
        raise RunError("\n".join(["at least one run must have ended; got none", *left_out]))
    in_order = sorted(rows, key=_order)
    return RunSet(with_variants(pd.DataFrame(in_order).drop(columns="order")), tuple(left_out))


def with_variants(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the table of runs with the variant of each, indexed by the name of the run."""
    variants = _variants(runs)
    names = pd.Series([f"{v} s{s}" for v, s in zip(variants, runs["seed"], strict=True)])
    if not names.is_unique:  # two experiments may share a label and a hash
        names = runs["experiment"] + " " + names
    return runs.assign(variant=variants, run=names).set_index("run")


def load_variants(runs: RunSet) -> tuple[list[Run], list[str]]:
    """Return the runs whole, each labelled by its variant, and why any of them cannot be read.

    Raises RunError where none can.
    """
    loaded, damaged = [], []
    for path, variant in zip(runs.runs["path"], runs.runs["variant"], strict=True):
        try:
            loaded.append(replace(load_run(Path(path)), label=str(variant)))
        except RunError as error:
            damaged.append(str(error))
    if not loaded:
        raise RunError("\n".join(["at least one run must be readable; got none", *damaged]))
    return loaded, damaged


def _row(path: Path, manifest: Json) -> dict[str, object]:
    metric = first_metric(path, manifest).name
    final = f"final_{metric}"
    names = ("experiment", "label", "strategy", "seed", "config_hash", "conditions_hash",
             "num_rounds", "simulated_s", final, "wall_s")  # fmt: skip
    parts: dict[str, object] = {}
    for part in ("model", "data"):
        entry = manifest[part] if isinstance(manifest[part], dict) else {}
        parts |= {part: entry.get("name"), f"{part}_sha256": entry.get("sha256")}
    data = manifest["data"] if isinstance(manifest["data"], dict) else {}
    parts["num_test"] = data.get("num_test")
    row = {"path": str(path), **{name: manifest.get(name) for name in names}, **parts}
    for name, value in row.items():
        if not isinstance(value, str | int | float | None):
            raise RunError(
                f"{path / 'manifest.json'} is damaged: {name} must be a number or a text, got "
                f"{value!r:.60}"
            )
    return {**row, "training": training(manifest), "metric": metric}


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what runs are sorted by."""
    number, place = row["order"]
    return number, whole(place), row["label"], row["config_hash"], row["seed"]


def whole(place: Sequence[int]) -> list[int]:
    """Return a place with the zeros at its end that a config leaves out, by which runs sort."""
    return [*place, *[0] * (MAX_AXES - len(place))]


def _variants(runs: pd.DataFrame) -> list[str]:
    """Return the name of each run's variant: its label, with settings that the label hides."""
    names: dict[tuple[object, object], str] = {}
    for label, same in runs.groupby("label", sort=False):
        first = same.drop_duplicates("config_hash")
        if len(first) == 1:
            names[label, first["config_hash"].iloc[0]] = str(label)
            continue
        unlike = differing([flatten(read_config(Path(path))) for path in first["path"]])
        named = [" ".join([str(label), *in_words(one)]) for one in unlike]
        if len(set(named)) < len(named) or max(map(len, named)) > 60:
            named = [f"{label} {config_hash}" for config_hash in first["config_hash"]]
        names |= {(label, h): name for h, name in zip(first["config_hash"], named, strict=True)}
    keys = zip(runs["label"], runs["config_hash"], strict=True)
    return [names[key] for key in keys]


def differing(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return for each config the keys in which any two differ, in order of first appearance."""
    keys = dict.fromkeys(key for config in configs for key in config if key not in NOT_SIMULATED)
    chosen = [k for k in keys if any(c.get(k) != configs[0].get(k) for c in configs)]
    return [{key: config.get(key) for key in chosen} for config in configs]


def in_words(settings: Mapping[str, Any]) -> list[str]:
    """Return words like ``rank=8``: the last part of each key, or all where two end alike.

    A list of numbers or texts is its entries, as in ``memory_share=0.01,0.02``.
    """
    short = {key: key.rpartition(".")[2] for key in settings}
    ends = list(short.values())
    return [
        f"{short[key] if ends.count(short[key]) == 1 else key}={_value_in_words(value)}"
        for key, value in settings.items()
        if value is not None
    ]


def _value_in_words(value: object) -> str:
    if isinstance(value, list) and value and not any(isinstance(v, list | dict) for v in value):
        return ",".join(map(str, value))
    return str(value)
