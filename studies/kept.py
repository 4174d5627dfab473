"""Keeps of a finished run what comparisons need in two small files, and reads them again.

A study goes on for weeks and machines, and its run folders are too large for a repository. Kept are
the rounds as CSV, and as JSON where they come from, the sums over plans that tables show, and who
trained which block.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.metrics.definitions import BESIDE, JUDGES
from analysis.metrics.study import ROUND_COLUMNS, Study, study_of, work_of
from analysis.runs.files import Json, RunError
from analysis.runs.load import Run, load_run

FACTS = (
    "experiment", "label", "strategy", "seed", "config_hash", "conditions_hash", "num_rounds",
    "simulated_s", "model", "cost_model", "data", "training_dtype", "versions", "git_sha",
    "git_dirty", "wall_s",
)  # fmt: skip
"""Entries of a manifest that are kept."""


@dataclass(frozen=True, eq=False)
class KeptRun:
    """A kept run has its rounds, and sums over its plans in place of the plans themselves."""

    run: Run  # with empty tables of devices and clients
    work: Mapping[str, float]  # the metrics of its plans and devices, as tables show them
    blocks: Sequence[float]  # share of the merged examples that trained each block, from the input
    menu: pd.DataFrame  # one row for each depth and number of packed blocks: num_plans
    profiles: pd.DataFrame  # one row for each kind of device: num_plans, num_merged, means


def keep(folder: Path, where: Path) -> Path:
    """Keep the finished run of a folder below ``where``; return the JSON file.

    Both files are a function of the run alone. Raises RunError where the run cannot be read.
    """
    run = load_run(folder)
    if run.clients.empty:
        raise RunError(f"a run that is kept must have dispatched plans, got none in {folder}")
    where.mkdir(parents=True, exist_ok=True)
    judged = (run.metric.name, "loss", *(one.name for one in BESIDE))
    columns = [name for name in (*ROUND_COLUMNS, *judged) if name in run.rounds]
    facts = {name: run.manifest.get(name) for name in FACTS}
    content = facts | {
        "metric": run.metric.name,
        # The fleet is left out: it stands in the experiment's file and in the conditions' hash.
        "config": {key: value for key, value in run.config.items() if key != "fleet"},
        "work": {
            name: None if math.isnan(value) else value
            for name, value in work_of(run.clients, run.devices, run.metric).items()
        },
        "blocks": _blocks(run),
        "menu": _menu(run).to_dict("split", index=False),
        "profiles": _profiles(run).to_dict("split", index=False),
    }
    name = f"{run.label}-s{run.manifest['seed']}"
    (where / f"{name}.csv").write_text(
        run.rounds[columns].to_csv(index=False, lineterminator="\n"), encoding="utf-8"
    )
    file = where / f"{name}.json"
    file.write_text(_as_text(content), encoding="utf-8")
    return file


def read_kept(folder: Path) -> list[KeptRun]:
    """Return the runs that are kept directly in a folder, by seed and in the order of the config.

    Raises RunError for a file that is damaged.
    """
    kept = [_read(file) for file in sorted(folder.glob("*.json"))]
    return sorted(kept, key=lambda one: (one.run.manifest["seed"], one.run.config.get("place", [])))


def study_of_kept(kept: Sequence[KeptRun], *, baseline: str | None = None) -> Study:
    """Return the study of kept runs, which must have met the same conditions for each seed."""
    _require_comparable([one.run for one in kept])
    runs = [one.run for one in kept]
    return study_of(runs, baseline=baseline, works=[one.work for one in kept])


def _require_comparable(runs: Sequence[Run]) -> None:
    """Raise RunError unless all share model, data and training, and runs of a seed conditions."""
    first: dict[object, tuple[Run, Json]] = {}
    for run in runs:
        facts = run.manifest
        shared = {name: facts[name] for name in ("model", "data", "metric")}
        shared["training"] = facts["training_dtype"] is not None
        of_seed = {"conditions": facts["conditions_hash"]}
        for key, own in (("all", shared), (facts["seed"], of_seed)):
            other, known = first.setdefault(key, (run, own))
            if differing := [name for name in own if own[name] != known[name]]:
                raise RunError(
                    "runs that are compared must share model, data, training and metric, and for "
                    f"each seed the conditions; {other.path} and {run.path} differ in "
                    + ", ".join(differing)
                )


def _as_text(content: Json) -> str:
    """Return JSON with an entry a line, so that two kept runs can be compared by eye."""
    lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _read(file: Path) -> KeptRun:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        texts = pd.read_csv(file.with_suffix(".csv"), dtype=str, keep_default_na=False)
        rounds = texts.apply(lambda column: pd.Series([*map(_number, column)]))
        run = Run(
            path=file,
            label=content["label"],
            manifest=content,
            config=content["config"],
            devices=pd.DataFrame(),
            rounds=rounds,
            clients=pd.DataFrame(),
            metric=next(one for one in JUDGES if one.name == content["metric"]),
        )
        tables = (pd.DataFrame(**content[name]) for name in ("menu", "profiles"))
        work = {
            name: math.nan if value is None else value for name, value in content["work"].items()
        }
        return KeptRun(run, work, content["blocks"], *tables)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise RunError(f"{file} must be a kept run beside its CSV: {error}") from error


def _number(text: str) -> float:
    """Return the number that was written, to the last bit; NaN for an empty text."""
    return int(text) if text.isdecimal() else float(text or math.nan)


def _blocks(run: Run) -> list[float]:
    """Return the share of the merged examples whose device trained each block, from the input."""
    merged = run.clients[run.clients["outcome"] == "aggregated"]
    examples, depth = merged["num_examples"], merged["depth"]
    num_blocks = len(str(run.clients["weight_formats"].iloc[0]).split(","))
    total = float(examples.sum())
    return [
        float(examples[depth >= num_blocks - block].sum()) / total if total else 0.0
        for block in range(num_blocks)
    ]


def _menu(run: Run) -> pd.DataFrame:
    """Return how many plans had each depth with so many packed blocks."""
    keys = ["depth", "num_quantized_blocks"]
    return run.clients.groupby(keys).size().rename("num_plans").reset_index()


def _profiles(run: Run) -> pd.DataFrame:
    """Return what each kind of device was given, and how long it took and waited."""
    plans = run.clients.assign(
        is_merged=run.clients["outcome"] == "aggregated",
        took_s=run.clients["finished_s"] - run.clients["started_s"],
    )
    return (
        plans.groupby("profile", observed=True)
        .agg(
            num_plans=("is_merged", "size"),
            num_merged=("is_merged", "sum"),
            mean_depth=("depth", "mean"),
            mean_packed=("num_quantized_blocks", "mean"),
            mean_took_s=("took_s", "mean"),
            mean_waiting_s=("waiting_s", "mean"),
        )
        .reset_index()
    )
