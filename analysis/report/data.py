"""Collects what a report says: one content for its Markdown and its HTML."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import pandas as pd
import yaml

from analysis.figures import FigureSpec
from analysis.metrics.study import Study
from analysis.report.table import StudyTable, privacy_in_words, study_table
from analysis.runs.fleet import devices
from analysis.runs.load import Run
from analysis.units import BYTES, NO_NUMBER, SECONDS, Scale, Unit, significant
from simulator.config.keys import flatten
from simulator.config.schema import NOT_SIMULATED
from traces.text import is_number

MAX_NAMED = 6  # the most variants that a title names
RECONSTRUCTION = (
    "FedQuad- and HAFLQ-style methods here are re-implemented from the published abstracts;"
    " internals not specified there are our own reconstruction. The figures their authors give are"
    " the authors' own claims, on their own models, data and devices. This run neither confirms"
    " nor refutes them: it is another experiment."
)
READING = (
    "Time is simulated: it follows from device profiles, link traces and the plan's cost. The"
    " training behind the accuracy is real. Wall times are those of the host that simulated.",
    "A device that meets OOM leaves its round early. A strategy that loses its slow devices this"
    " way has short rounds and little waiting, and never learns from their data: read its time and"
    " waiting beside the OOM row.",
    "The project's docs/metrics.md defines every number.",
)
SAME_CONDITIONS = (
    "For each seed every strategy met the same devices, memory budgets, traces, failures and data"
    " shards. A hash covers all of them, and runs of unlike hashes are refused. Devices that took"
    " part in at least one round of the first seed:"
)


class RunLine(NamedTuple):
    """A run line is one run in the list of what was run."""

    name: str
    strategy: str
    rounds: str
    simulated: str
    wall: str
    settings: str
    folder: str


class DeviceLine(NamedTuple):
    """A device line tells of the devices of one profile that took part."""

    profile: str
    numbers: str
    memory: str  # the smallest and largest of their memory budgets, with the unit
    links: str


class ConfigLine(NamedTuple):
    """A config line is one key of configs or manifests, with its value in each run."""

    key: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Return True if the runs do not share the value."""
        return len(set(self.values)) > 1


@dataclass(frozen=True, eq=False)
class ReportData:
    """The report data are the content of a report on a study that holds its runs."""

    study: Study
    drawn: Sequence[FigureSpec]
    heading: str = ""  # what tells the runs from those of other reports beside this one

    @property
    def title(self) -> str:
        """Return the heading, else the experiment's title or name, else the first variants."""
        if self.heading:
            return self.heading
        for key in ("title", "name"):
            given = {run.config.get(key) for run in self.study.runs}
            if len(given) == 1 and None not in given:
                return str(*given)
        names = [self.study.name(variant) for variant in self.study.variants]
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        return ", ".join(names[:MAX_NAMED]) + more

    @cached_property
    def table(self) -> StudyTable:
        """Return the numbers of every variant."""
        return study_table(self.study)

    @cached_property
    def runs(self) -> list[Run]:
        """Return the runs by their names for readers, with the seed if there are several seeds."""
        if self.study.per_run["seed"].nunique() == 1:
            return [replace(run, label=self.study.name(run.label)) for run in self.study.runs]
        return [
            replace(run, label=f"{self.study.name(run.label)} s{run.manifest['seed']}")
            for run in self.study.runs
        ]

    @property
    def run_lines(self) -> list[RunLine]:
        """Return for each run its length, its strategy's settings and its folder."""
        return [
            RunLine(
                run.label,
                run.strategy,
                str(int(run.rounds["round"].max())),
                SECONDS.text(float(run.rounds["closed_s"].max())),
                _wall_time(run),
                _strategy_settings(run),
                run.path.as_posix(),
            )
            for run in self.runs
        ]

    @property
    def device_lines(self) -> list[DeviceLine]:
        """Return a line for each profile of devices that took part in the first seed, by budget."""
        seed = min(run.manifest["seed"] for run in self.runs)
        fleet = devices([run for run in self.runs if run.manifest["seed"] == seed]).reset_index()
        return [
            DeviceLine(
                str(profile),
                ", ".join(str(device) for device in sorted(group["device_id"])),
                _span(BYTES, group["memory_budget_bytes"]),
                ", ".join(sorted(set(group["link"].astype(str)))),
            )
            for profile, group in fleet.groupby("profile", sort=False)
        ]

    @cached_property
    def settings(self) -> list[ConfigLine]:
        """Return the resolved configs, a key a line."""
        return _lines([flatten(run.config) for run in self.runs], absent="")

    @cached_property
    def provenance(self) -> list[ConfigLine]:
        """Return the manifests and the places of the run folders, an entry a line."""
        entries = [{"folder": run.path.as_posix(), **flatten(run.manifest)} for run in self.runs]
        return _lines(entries, absent="null")

    @property
    def shared_settings(self) -> str:
        """Return the settings that all runs share, as YAML."""
        shared = _shared_settings(self.study.runs)
        return yaml.safe_dump(shared, sort_keys=True, allow_unicode=True).rstrip()

    @property
    def differing(self) -> list[str]:
        """Return the settings that the runs do not share, but for strategy, label and seed."""
        return differing_settings(self.study.runs)

    @property
    def facts(self) -> list[str]:
        """Return the facts that all runs share: model, data, seeds, versions, code."""
        return _facts(self.study)


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Return the settings that the runs do not share, those of the strategy left out.

    Seeds and names are left out too, since they are expected to differ.
    """
    shared = _shared_settings(runs)
    differing = {key for run in runs for key in flatten(run.config)} - set(shared)
    return sorted(
        key for key in differing if not key.startswith("strategy.") and key not in NOT_SIMULATED
    )


def _shared_settings(runs: Sequence[Run]) -> dict[str, Any]:
    first, *others = (flatten(run.config) for run in runs)
    return {
        key: value
        for key, value in first.items()
        if all(key in other and other[key] == value for other in others)
    }


def _lines(mappings: Sequence[Mapping[str, Any]], *, absent: str) -> list[ConfigLine]:
    keys = dict.fromkeys(key for mapping in mappings for key in mapping)
    return [
        ConfigLine(key, tuple(_shown(own[key]) if key in own else absent for own in mappings))
        for key in keys
    ]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


SHORT = 8
"""The digits of a hash that a report shows among its facts; the provenance has all."""


def _facts(study: Study) -> list[str]:
    runs, manifest = study.runs, study.runs[0].manifest
    charged = f", a proxy at the costs of {', '.join(study.charged)}" if study.charged else ""
    data = manifest["data"]
    share = data.get("majority_share")
    majority = f"{100 * share:.3g} %" if is_number(share) else "unknown"
    classes = ""
    if "num_classes" in data:
        classes = f", {data['num_classes']} classes, majority class {majority}"
    versions = manifest.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    hashes = ", ".join(sorted({str(run.manifest["conditions_hash"])[:SHORT] for run in runs}))
    lines = [
        f"model: {manifest['model'].get('name')}{charged}",
        f"data: {data.get('name')} ({data.get('num_train')} training and {data.get('num_test')}"
        f" test examples{classes})",
        "seed: " + ", ".join(map(str, sorted({run.manifest["seed"] for run in runs}))),
        "versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()),
        f"conditions that every run met (devices, traces, shards, failures): {hashes}",
    ]
    if private := privacy_in_words(study):
        lines.append(private)
    if dtype := manifest.get("training_dtype"):
        lines.append(f"training on the host in {dtype}")
    if commit := manifest.get("git_sha"):
        changed = " with uncommitted changes" if manifest.get("git_dirty") else ""
        lines.append(f"code: commit {str(commit)[:SHORT]}{changed}")
    return lines


def _strategy_settings(run: Run) -> str:
    """Return the strategy's own settings on one line."""
    strategy = run.config.get("strategy")
    if not isinstance(strategy, dict):
        return ""
    own = {key: value for key, value in flatten(strategy).items() if key != "kind"}
    return ", ".join(f"{key} {value}" for key, value in own.items())


def _wall_time(run: Run) -> str:
    """Return how long the host took; a dash where the manifest does not say."""
    wall_s = run.manifest.get("wall_s")
    return SECONDS.text(float(wall_s)) if is_number(wall_s) else NO_NUMBER


def _span(scale: Scale, values: pd.Series[float]) -> str:
    """Return the smallest and the largest value in one unit."""
    unit: Unit = scale.unit(values)
    low, high = (significant(value / unit.size) for value in (values.min(), values.max()))
    return f"{low} {unit.name}" if low == high else f"{low} to {high} {unit.name}"
