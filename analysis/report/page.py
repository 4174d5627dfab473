"""The page of a report, in Markdown: what was run, under which conditions, what came out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
import yaml

from analysis.figures import FigureSpec
from analysis.metrics.comparison import Comparison
from analysis.report import tables
from analysis.runs.fleet import devices
from analysis.runs.load import Run
from analysis.units import SECONDS, choose, significant
from simulator.config.experiment import flatten

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


def text(comparison: Comparison, drawn: Sequence[FigureSpec], left_out: Sequence[str]) -> str:
    """The whole page. Figures are linked as ``figures/<name>.png``."""
    sections = [
        f"# {', '.join(run.label for run in comparison.runs)}",
        "## What was run",
        _what(comparison.runs, left_out),
        "## Conditions",
        _conditions(comparison.runs),
        "## Result",
        tables.markdown(comparison).rstrip(),
        "\n".join(f"* {line}" for line in findings(comparison)),
        "## How to read it",
        "\n".join(f"* {line}" for line in READING),
        *_claims(comparison),
        "## Figures",
        *[_figure(spec) for spec in drawn],
    ]
    return "\n\n".join(sections) + "\n"


def _what(runs: Sequence[Run], left_out: Sequence[str]) -> str:
    """Model, data and the runs with their settings."""
    rows = [
        [
            run.label,
            run.strategy,
            str(int(run.rounds["round"].max())),
            _seconds(float(run.rounds["closed_s"].max())),
            _seconds(run.manifest.get("wall_s")),
            _settings(run),
            f"`{run.path.as_posix()}`",
        ]
        for run in runs
    ]
    header = ["run", "strategy", "rounds", "simulated", "wall", "settings", "folder"]
    missing = [f"Left out: {reason}." for reason in left_out]
    listed = "\n".join(f"* {fact}" for fact in facts(runs))
    return "\n\n".join([listed, _grid(header, rows), *missing])


def facts(runs: Sequence[Run]) -> list[str]:
    """What all runs share: model, data, seed, versions, code."""
    manifest = runs[0].manifest
    data = manifest["data"]
    lines = [
        f"model: {manifest['model'].get('name')}",
        f"data: {data.get('name')} ({data.get('num_train')} training and {data.get('num_test')}"
        f" test examples, {data.get('num_classes')} classes,"
        f" majority class {_percent(data.get('majority_share'))})",
        "seed: " + ", ".join(map(str, sorted({run.manifest["seed"] for run in runs}))),
        "versions: "
        + ", ".join(f"{name} {number}" for name, number in manifest.get("versions", {}).items()),
    ]
    hashes = ", ".join(sorted({str(run.manifest["conditions_hash"]) for run in runs}))
    lines.append(f"conditions that every run met (devices, traces, shards, failures): {hashes}")
    if dtype := manifest.get("training_dtype"):
        lines.append(f"training on the host in {dtype}")
    if commit := manifest.get("git_sha"):
        changed = " with uncommitted changes" if manifest.get("git_dirty") else ""
        lines.append(f"code: commit {commit}{changed}")
    return lines


def _conditions(runs: Sequence[Run]) -> str:
    """The fleet, and the settings that all runs share."""
    fleet = devices(runs).reset_index()
    rows = [
        [
            str(profile),
            ", ".join(str(device) for device in sorted(group["device_id"])),
            _span(group["memory_budget_bytes"]),
            ", ".join(sorted(set(group["link"]))),
        ]
        for profile, group in fleet.groupby("profile", sort=False)
    ]
    shared, differing = _settings_of_all(runs)
    named = [f"**Beside the strategy, the runs differ in** {', '.join(differing)}."]
    settings = yaml.safe_dump(shared, sort_keys=True, allow_unicode=True).rstrip()
    return "\n\n".join(
        [
            "Every strategy met the same devices, memory budgets, traces, failures and data shards:"
            f" the hash of all of them is `{runs[0].manifest['conditions_hash']}` in every run"
            " (runs of unlike hashes are refused). Devices that took part in at least one round:",
            _grid(["device", "numbers", "memory for training (MB)", "links"], rows),
            "Settings shared by all runs (among them the share of memory that training may have):",
            f"```yaml\n{settings}\n```",
            *(named if differing else []),
        ]
    )


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Names of the settings beside the strategy's that the runs do not share."""
    return _settings_of_all(runs)[1]


def _settings_of_all(runs: Sequence[Run]) -> tuple[dict[str, Any], list[str]]:
    """The settings that all runs share, and the names of those that they do not.

    The strategy's own settings and the label are expected to differ, and are not named.
    """
    flat = [flatten(run.config) for run in runs]
    shared = {
        key: value
        for key, value in flat[0].items()
        if all(key in other and other[key] == value for other in flat)
    }
    differing = {key for settings in flat for key in settings} - set(shared)
    return shared, sorted(
        key for key in differing if not key.startswith("strategy.") and key != "label"
    )


def findings(comparison: Comparison) -> list[str]:
    """One sentence a run on the target."""
    target, table = comparison.target.accuracy, comparison.table
    if target is None:
        return [f"No target accuracy: {comparison.target.rule}."]
    unit = choose(SECONDS, table["time_to_target_s"])
    sentences = []
    for label, row in table.iterrows():
        if not row["is_reached"]:
            sentences.append(f"{label} did not reach {_percent(target)}.")
            continue
        time = f"{significant(row['time_to_target_s'] / unit.size)} {unit.name}"
        gain = "" if label == comparison.baseline.label else f"; {_gain(row, comparison)}"
        sentences.append(f"{label} reached {_percent(target)} after {time}{gain}.")
    return sentences


def claims(comparison: Comparison) -> list[str]:
    """The authors' claims for the strategies present, each beside what these runs measured."""
    base_label = comparison.baseline.label
    rows = dict(comparison.table.iterrows())
    lines = []
    for label, row in rows.items():
        if label == base_label:
            continue
        if row["strategy"] == "fedquad":
            lines.append(
                "FedQuad's authors claim 1.4-5.3x faster convergence to a target accuracy than"
                f" their baselines. Measured here, {label}: {_gain(row, comparison)}."
            )
        if row["strategy"] == "haflq":
            lines.append(
                "HAFLQ's authors claim 31 % less memory, 49 % less communication and 50 % more"
                f" accuracy than their baseline. Measured here, {label} against"
                f" {base_label}: {_against(row, rows[base_label])}."
            )
    return lines


def _claims(comparison: Comparison) -> list[str]:
    lines = "\n".join(f"* {line}" for line in claims(comparison))
    return ["## Beside the authors' claims", RECONSTRUCTION, lines] if lines else []


def _gain(row: pd.Series[Any], comparison: Comparison) -> str:
    """The speed-up in words."""
    if pd.isna(row["speed_up"]):
        return "no speed-up, since neither it nor the baseline reached a target in training"
    bound = {"=": "", ">": "more than ", "<": "less than "}[row["speed_up_relation"]]
    base = comparison.baseline.label
    why = {"=": "", ">": f" ({base} never reached it)", "<": " (not reached)"}
    ratio = f"{bound}{row['speed_up']:.2f} times as fast as {base}"
    return f"{ratio}{why[row['speed_up_relation']]}"


def _against(row: pd.Series[Any], base: pd.Series[Any]) -> str:
    """Memory, bytes and accuracy relative to the baseline."""
    pairs = {
        "mean memory that a plan needs": ("planned_memory_bytes",),
        "bytes both ways": ("download_bytes", "upload_bytes"),
        "final accuracy": ("final_accuracy",),
    }
    words = []
    for name, columns in pairs.items():
        own, other = (sum(float(one[column]) for column in columns) for one in (row, base))
        change = f"{100 * (own / other - 1):+.0f} %" if other > 0 and own == own else "no number"
        words.append(f"{name} {change}")
    points = 100 * (row["final_accuracy"] - base["final_accuracy"])
    return ", ".join(words) + ("" if pd.isna(points) else f" ({points:+.1f} points)")


def _figure(spec: FigureSpec) -> str:
    link = f"figures/{spec.name}"
    return (
        f"### {spec.name}\n\n![{spec.name}]({link}.png)\n\n{spec.caption}"
        f" [PDF]({link}.pdf), [numbers]({link}.csv)"
    )


def _settings(run: Run) -> str:
    """The strategy's own settings on one line."""
    strategy = run.config.get("strategy")
    if not isinstance(strategy, dict):
        return ""
    own = {key: value for key, value in flatten(strategy).items() if key != "kind"}
    return ", ".join(f"{key} {value}" for key, value in own.items())


def _grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _span(sizes: pd.Series[float]) -> str:
    low, high = (significant(value / 1e6) for value in (sizes.min(), sizes.max()))
    return low if low == high else f"{low} - {high}"


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    unit = choose(SECONDS, [value])
    return f"{significant(value / unit.size)} {unit.name}"


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.3g} %"
