"""Makes the tables and sentences that the page of a study may ask for, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.escape import markdown
from analysis.metrics import run_metrics
from analysis.metrics.definitions import value_in_words
from analysis.report.formats import markdown_grid, to_markdown
from analysis.report.table import study_table
from analysis.runs.names import reader_names
from analysis.units import SECONDS, significant
from studies.comparisons import NO_NUMBER, findings, overview, told_apart
from studies.frames import (
    baseline_depth,
    bound_frame,
    chosen_frame,
    decomposition_frame,
    mean_ratio,
    menu_frame,
    of_variants,
)
from studies.kept import KeptRun
from studies.source import Source
from traces.text import listed

MOST_ACROSS = 5
"""The most variants beside each other that a page of the documentation has room for."""
SHORT = (
    "Time to", "Speed-up", "Final accuracy", "Standard error", "Mean wait", "Mean memory", "Upload",
    "Energy (", "Turns of devices",
)  # fmt: skip
"""The beginnings of the titles of the rows that the README shows."""


def table(source: Source) -> str:
    """Return the table of all numbers, with its notes and warnings."""
    return to_markdown(study_table(source.study), most_across=MOST_ACROSS)


def headline(source: Source) -> str:
    """Return the few numbers that the README shows, a row a variant, with note and warnings."""
    whole = study_table(source.study)
    # There is a row for each target, of which the first, the hardest, is shown.
    rows = [next((row for row in whole.rows if row.title.startswith(one)), None) for one in SHORT]
    chosen = replace(whole, rows=tuple(row for row in rows if row))
    return to_markdown(chosen, is_variant_a_row=True)


def decomposition(source: Source) -> str:
    """Return the time to each target as seconds a round times rounds, beside the baseline's."""
    study = source.study
    rows = [
        [
            value_in_words(study.metric, row["target"]),
            markdown(study.name(row["label"])),
            f"{row['num_reached']} of {row['num_runs']}",
            *(_cell(row[name]) for name in ("round_s", "rounds")),
            *(_ratio_cell(row[f"{name}_ratio"]) for name in ("round_s", "rounds", "time")),
        ]
        for row in decomposition_frame(source).to_dict("records")
    ]
    header = ["target", "variant", "reached", "s a round", "rounds", "s a round ×", "rounds ×"]
    return markdown_grid([*header, "time ×"], rows)


def blocks(source: Source) -> str:
    """Return the share of the merged examples that trained each block, the mean over seeds."""
    num_blocks = len(source.kept[0].blocks)
    header = ["variant", *(f"block {k}" for k in range(1, num_blocks + 1))]
    rows = []
    for variant in source.study.variants:
        shares = np.mean([one.blocks for one in source.of_variant(variant)], axis=0)
        cells = [f"{100 * share:.0f} %" for share in shares]
        rows.append([markdown(source.study.name(variant)), *cells])
    return markdown_grid(header, rows)


def chosen(source: Source, labels: Sequence[str] = ()) -> str:
    """Return what each kind of device was given: depth, packing, time and wait.

    ``labels`` are the variants that are shown, all where none is named.
    """
    rows = [
        [
            markdown(source.study.name(row["label"])),
            markdown(row["profile"]),
            str(row["num_plans"]),
            f"{100 * row['merged_share']:.0f} %",
            *(_cell(row[name]) for name in ("depth", "packed", "took_s", "waiting_s")),
        ]
        for row in of_variants(chosen_frame(source), labels).to_dict("records")
    ]
    header = ["variant", "device", "plans", "merged", "depth", "packed blocks", "s busy"]
    return markdown_grid([*header, "s waited"], rows)


def bound(source: Source) -> str:
    """Return what depth alone can gain a round: the time of a step at a depth over that at depth 1.

    All blocks run forward whatever the depth, so that no scheduler of depths gains more a round:
    over training all blocks, and over the depth that the baseline trains.
    """
    frame = bound_frame(source)
    depths = sorted({source.world.model.num_blocks, baseline_depth(source), 1}, reverse=True)
    rows = []
    for profile, own in frame.groupby("profile", sort=False):
        steps = own.set_index("depth")
        cells = (_cell(steps["step_s"][depth]) for depth in depths)
        ratios = (f"{steps['over_depth_1'][depth]:.2f}" for depth in depths[:-1])
        rows.append([str(profile), *cells, *ratios])
    of = [f"s a step, depth {depth}" for depth in depths]
    return markdown_grid(["device", *of, *(f"T({d}) / T(1)" for d in depths[:-1])], rows)


def menu(source: Source) -> str:
    """Return memory and time of a step by depth and packing, on the fleet's first device."""
    frame = menu_frame(source)
    texts = frame.assign(
        gb=(frame["memory_bytes"] / 1e9).map("{:.2f}".format), seconds=frame["step_s"].map(_cell)
    )
    rows = [
        [str(depth), *own[["gb", "seconds"]].to_numpy().ravel()]
        for depth, own in texts.groupby("depth")
    ]
    kinds = frame["activations"].unique()
    header = ["depth", *(f"{kind} ({unit})" for kind in kinds for unit in ("GB", "s"))]
    return f"{markdown_grid(header, rows)}\n\nOn {source.world.fleet[0].profile.name}.\n"


def rates(source: Source) -> str:
    """Return what each variant learned at each learning rate that was tried, the best marked.

    The mean of the last evaluations, as many as must reach a target together.
    """
    found = [one for one in source.beside(f"{source.name}-rate-") if one.has_runs]
    scores: dict[str, dict[float, float]] = {}
    for one in found:
        for kept in one.kept:
            scored = kept.run.rounds[source.study.metric.name].dropna()
            score = scored.iloc[-source.study.smoothing :].mean()
            rate = float(kept.run.config["training"]["learning_rate"])
            scores.setdefault(kept.run.label, {})[rate] = float(score)
    if not scores:
        return "(No other learning rates are known.)"
    tried = sorted({rate for own in scores.values() for rate in own})
    header = ["variant", *(f"rate {rate:g}" for rate in tried)]
    rows = [
        [
            markdown(source.study.name(label)),
            *(_score(source, own, rate) for rate in tried),
        ]
        for label, own in scores.items()
    ]
    return markdown_grid(header, rows)


def _score(source: Source, scores: Mapping[float, float], rate: float) -> str:
    """Return the score at a rate in words, marked where it is the best; a dash without one."""
    metric = source.study.metric
    if rate not in scores:
        return NO_NUMBER
    text = value_in_words(metric, float(f"{scores[rate]:.3g}"))
    return f"**{text}**" if scores[rate] == metric.best(scores.values()) else text


def claims(source: Source) -> str:
    """Return what the papers' authors claim beside what the kept runs came to."""
    study = source.study
    speed = []
    for one in (study, *study.others):
        target = value_in_words(study.metric, one.target.value or math.nan)
        change = _versus(one.per_run, "time_to_target_s", "fedquad", one.baseline)
        speed.append(f"{change} to {target}")
    claim = "1.4 to 5.3 times faster to a target"
    rows = [["FedQuad", claim, f"time {'; '.join(speed)}: below 1 is faster"]]
    metric = study.metric
    for what, column, number in (
        ("31 % less memory", "planned_memory_bytes", "peak memory of a plan"),
        ("49 % less communication", "upload_bytes", "bytes up"),
        ("50 % more accuracy", f"final_{metric.name}", f"{metric.phrase} after the last round"),
        ("", f"{metric.name}_at_time", f"{metric.phrase} after the same time"),
    ):
        change = _versus(study.per_run, column, "haflq", study.baseline)
        rows.append(["HAFLQ" if what else "", what, f"{number} {change}"])
    header = ["method", "authors' claim", f"measured here, over {study.name(study.baseline)}"]
    return markdown_grid(header, rows, is_numeric=False)


def _versus(per_run: pd.DataFrame, column: str, variant: str, baseline: str) -> str:
    """Return the geometric mean over seeds of a variant's number over the baseline's, as text."""
    values = per_run.pivot(index="seed", columns="variant", values=column)
    if not {variant, baseline} <= set(values):
        return NO_NUMBER
    known = values[[variant, baseline]].dropna()
    ratio = mean_ratio(known[variant], known[baseline])
    seeds = "1 seed" if len(known) == 1 else f"{len(known)} seeds"
    return f"× {ratio:.2f} ({seeds})" if len(known) else "not reached by both"


def pacing(source: Source) -> str:
    """Return what each pacing makes of each scheduler, by the clock alone."""
    rows = []
    for found in source.beside(f"{source.name}-pacing-"):
        if not found.has_runs:
            continue
        for variant in dict.fromkeys(one.run.label for one in found.kept):
            own = found.of_variant(variant)
            kind = found.name.rpartition("pacing-")[2]
            rows.append([kind, source.study.name(variant), *_flow(own)])
    if not rows:
        return "(No other pacings are known.)"
    header = ["pacing", "scheduler", "merged an hour", "s waited", "busy", "lost work", "staleness"]
    return markdown_grid([*header, "MJ an hour"], rows)


def _flow(kept: Sequence[KeptRun]) -> list[str]:
    """Return the means over seeds of what flows through runs that only tell the time."""
    numbers = []
    for one in kept:
        rounds, work = one.run.rounds, one.work
        hours = float(rounds["closed_s"].max()) / 3600
        merged = float(rounds["num_aggregated"].sum())
        waited = run_metrics.mean_waiting_s(rounds)
        energy = float(rounds["energy_j"].sum()) / 1e6 / hours
        shares = (100 * work["utilisation"], 100 * work["lost_work_share"])
        numbers.append((merged / hours, waited, *shares, work["mean_staleness"], energy))
    merged, waited, busy, lost, stale, energy = np.mean(numbers, axis=0)
    cells = [_cell(merged), _cell(waited), f"{busy:.0f} %", f"{lost:.0f} %"]
    return [*cells, _cell(stale), _cell(energy)]


def kept_runs(source: Source) -> str:
    """Return where the kept runs come from: seeds, versions, commit, processor time."""
    header = ["run", "rounds", "conditions", "config", "commit", "torch", "host time"]
    rows = []
    for one in source.kept:
        facts = one.run.manifest
        commit = str(facts["git_sha"] or NO_NUMBER)[:8] + ("+" if facts["git_dirty"] else "")
        names = [f"{one.run.label}-s{facts['seed']}", str(facts["num_rounds"])]
        hashes = [str(facts["conditions_hash"])[:8], str(facts["config_hash"]), commit]
        wall = SECONDS.text(facts["wall_s"])
        rows.append([*names, *hashes, str(facts["versions"].get("torch", NO_NUMBER)), wall])
    return markdown_grid(header, rows, is_numeric=False)


def planned(source: Source) -> str:
    """Return which seeds of the plan are kept, and which are still to be run.

    There is a row for those variants of an experiment that have the same seeds.
    """
    rows = []
    for one in source.beside(""):
        names = reader_names(
            (config.label, config.strategy.kind, config.strategy_title) for config in one.configs
        )
        labels = dict.fromkeys(step.run.label for step in one.steps)
        alike: dict[tuple[str, ...], list[str]] = {}  # kept and missing seeds -> their variants
        for label in labels:
            own = [step for step in one.steps if step.run.label == label]
            seeds = (
                [str(step.run.seed) for step in own if step.is_kept is is_kept]
                for is_kept in (True, False)
            )
            cells = tuple(", ".join(some) or NO_NUMBER for some in seeds)
            alike.setdefault(cells, []).append(names[label])
        for cells, variants in alike.items():
            said = f"all {len(labels)}" if len(variants) == len(labels) > 3 else listed(variants)
            rows.append([one.name, markdown(said), *cells])
    header = ["experiment", "variants", "seeds that are kept", "still to be run"]
    return markdown_grid(header, rows, is_numeric=False)


def _cell(value: float) -> str:
    return significant(float(value)) if math.isfinite(value) else NO_NUMBER


def _ratio_cell(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else NO_NUMBER


PARTS: Mapping[str, Callable[[Source], str]] = {
    "table": table,
    "told-apart": told_apart,
    "findings": findings,
    "decomposition": decomposition,
    "blocks": blocks,
    "bound": bound,
    "menu": menu,
    "claims": claims,
    "pacing": pacing,
    "rates": rates,
    "kept": kept_runs,
    "planned": planned,
}
"""The tables that a line of the template may ask for."""
PARTS_OF_SOME: Mapping[str, Callable[[Source, Sequence[str]], str]] = {
    "chosen": chosen,
    "overview": overview,
}
"""Those that may show chosen variants alone, or must."""
