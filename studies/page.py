"""Writes docs/study.md and its figures from the kept runs: no number in it is written by hand.

    python -m studies.page studies/page.md docs/study.md

The template is Markdown with lines such as ``{{ table jetson80 }}``, each of which stands for what
``PARTS`` or ``FIGURES`` make of one experiment of the plan. What stands between
``{{ where jetson80 }}`` and ``{{ end }}`` is on the page once a run of that experiment is kept. A
figure lies beside the page, with the CSV that it is drawn from.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.escape import markdown
from analysis.figures import curves, performance_profile, render, style
from analysis.figures.rows import of_runs
from analysis.metrics import run_metrics
from analysis.metrics.definitions import METRICS, value_in_words
from analysis.metrics.kept import KeptRun, read_kept, study_of_kept
from analysis.metrics.paired import CONFIDENCE, MIN_SEEDS, students
from analysis.metrics.study import Study
from analysis.report.formats import markdown_grid, to_markdown
from analysis.report.table import LEVEL, study_table
from analysis.runs.names import reader_names, with_names
from analysis.units import SECONDS, significant
from devices.vocabulary.plan import TermGrid, TrainingPlan, WeightFormat
from simulator.config.experiment import load_experiment
from simulator.config.problems import UserError
from simulator.config.schema import RunConfig
from simulator.world.build import World, build_world
from studies import figures as drawn
from studies.run import Step, steps_of
from traces.text import listed

HERE = Path(__file__).parent
PLACE = re.compile(r"^\{\{ *([\w-]+) +([\w-]+) *\}\}$", re.MULTILINE)
WHERE = re.compile(
    r"^\{\{ *where +([\w-]+) *\}\}\n(.*?)^\{\{ *end *\}\}\n", re.MULTILINE | re.DOTALL
)
NO_NUMBER = "–"
UNPACKED: WeightFormat = "fp32"
COMPARED = ("time_to_target_s", "{}_at_time", "final_{}", "{}_area", "waiting_s")
"""The numbers in which variants are held against the baseline; {} is the first metric."""
SHORT = (
    "Time to", "Speed-up", "Final accuracy", "Standard error", "Mean wait", "Mean memory", "Upload",
    "Energy (", "Turns of devices",
)  # fmt: skip
"""How the titles of the README's rows begin."""
HEADLINE = re.compile(r"(<!-- study (\w+) -->\n).*?(<!-- end of study -->)", re.DOTALL)
GRID = tuple(round(0.05 * k, 2) for k in range(1, 20))
"""Targets of the figure of speed-ups."""


@dataclass(frozen=True)
class Source:
    """A source is one experiment of the plan: its steps and what is kept of them."""

    name: str
    results: Path
    plan: Mapping[str, Sequence[Step]]  # the steps of every experiment, by name

    @property
    def steps(self) -> Sequence[Step]:
        """The steps of the experiment. Raises UserError where the plan does not name it."""
        if self.name not in self.plan:
            raise UserError(f"the plan has no {self.name!r}, but " + ", ".join(self.plan))
        return self.plan[self.name]

    @property
    def has_runs(self) -> bool:
        """True once a run of the experiment is kept."""
        return any(step.is_kept for step in self.steps)

    def beside(self, prefix: str) -> list[Source]:
        """Return the experiments of the plan whose names begin like this."""
        names = [name for name in self.plan if name.startswith(prefix)]
        return [replace(self, name=name) for name in names]

    @cached_property
    def configs(self) -> list[RunConfig]:
        """The configs of the experiment's strategies, as the plan has them."""
        run = self.steps[0].run
        return load_experiment(run.file, run.overrides)

    @cached_property
    def kept(self) -> list[KeptRun]:
        """The runs that are kept, by the titles of today. Raises UserError where there are none."""
        if not self.has_runs:
            raise UserError(f"no run of {self.name} is kept in {self.results}: make study")
        kept = read_kept(self.results / self.name)
        titles = {one.label: one.strategy_title for one in self.configs}
        return [_titled(one, titles.get(one.run.label)) for one in kept]

    @cached_property
    def study(self) -> Study:
        """The study of the kept runs."""
        return study_of_kept(self.kept)

    @cached_property
    def config(self) -> RunConfig:
        """The config of the experiment's first strategy."""
        return self.configs[0]

    @cached_property
    def world(self) -> World:
        """The devices and costs of the experiment at the first seed of the plan."""
        return build_world(self.config, str(self.steps[0].run.file))

    def of_variant(self, variant: str) -> list[KeptRun]:
        """Return the kept runs of one variant."""
        return [one for one in self.kept if one.run.label == variant]


def _titled(kept: KeptRun, title: str | None) -> KeptRun:
    config = {**kept.run.config, "strategy_title": title}
    return replace(kept, run=replace(kept.run, config=config))


def table(source: Source) -> str:
    """Return the table of all numbers, with its notes and warnings."""
    return to_markdown(study_table(source.study))


def headline(source: Source) -> str:
    """Return the few rows of the table that the README shows, with its note and warnings."""
    whole = study_table(source.study)
    # Of a target that each variant has a row of its own: the first is the hardest of the config.
    rows = [next((row for row in whole.rows if row.title.startswith(one)), None) for one in SHORT]
    return to_markdown(replace(whole, rows=tuple(row for row in rows if row)))


def told_apart(source: Source) -> str:
    """Return each variant against the baseline: the change, its interval and whether it is one."""
    rows = [
        [
            *map(markdown, one.named),
            one.change,
            one.interval,
            *one.verdict,
            one.pairs,
        ]
        for one in _changes(source)
    ]
    header = ["variant", "number", "change", "95 % interval", "p (Holm)", "told apart", "pairs"]
    return markdown_grid(header, rows, is_numeric=False)


def findings(source: Source) -> str:
    """Return in a sentence which of the compared numbers are told apart from the baseline's."""
    study, changes = source.study, _changes(source)
    num_seeds = int(study.num_seeds.min())
    if num_seeds < MIN_SEEDS:
        seeds = "1 seed" if num_seeds == 1 else f"{num_seeds} seeds"
        return f"With {seeds} nothing can be told apart: the changes below are values alone."
    apart = [
        f"{one.named[0]}'s {one.named[1][:1].lower()}{one.named[1][1:]} ({one.change})"
        for one in changes
        if one.p < LEVEL
    ]
    count = f"{len(apart)} of {len(changes)} compared numbers can be told apart from"
    which = f": {listed(apart)}" if apart else ""
    return markdown(f"With {num_seeds} seeds {count} {study.name(study.baseline)}'s{which}.")


@dataclass(frozen=True)
class Change:
    """A change is one number of a variant against the baseline, over the seeds of both."""

    named: tuple[str, str]  # the variant and the number, for a reader
    change: str
    interval: str
    p: float  # after Holm's correction; NaN where nothing is known
    pairs: str

    @property
    def verdict(self) -> tuple[str, str]:
        """The p value in words, and whether the number is told apart: yes, no or unknown."""
        if math.isnan(self.p):
            return NO_NUMBER, "unknown"
        return f"{self.p:.3f}", "yes" if self.p < LEVEL else "no"


def _changes(source: Source) -> list[Change]:
    """Return the compared numbers of every variant, of which at least one pair is known."""
    study, changes = source.study, []
    compared = {column.format(study.metric.name) for column in COMPARED}
    titles = {metric.column: metric.title for metric in METRICS}
    words = {
        "target": value_in_words(study.metric, study.target.value or math.nan),
        "seconds": SECONDS.text(study.budget.at_s) if study.budget else "",
    }
    for row in study.differences.to_dict("records"):
        if row["metric"] not in compared or not row["num_pairs"]:
            continue
        by_ratio = row["kind"] == "ratio"
        ends = [float(row[name]) for name in ("value", "low", "high")]
        value, low, high = (f"{end:.2f}" if by_ratio else f"{100 * end:+.1f}" for end in ends)
        title = titles[row["metric"]].format(**words, baseline="", bytes="", joules="")
        changes.append(
            Change(
                named=(study.name(row["variant"]), title),
                change=f"{value} {'×' if by_ratio else 'points'}",
                interval=NO_NUMBER if math.isnan(ends[1]) else f"[{low}, {high}]",
                p=float(row["p_holm"]),
                pairs=f"{row['num_pairs']}" + (f" (+{c})" if (c := row["num_censored"]) else ""),
            )
        )
    return changes


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


def decomposition_frame(source: Source) -> pd.DataFrame:
    """Return one row for each target and variant: seconds a round, rounds, and their ratios.

    Means over the seeds at which both the variant and the baseline reached the target; the ratios
    to the baseline are geometric means, NaN where there is no such seed.
    """
    rows = []
    for study in (source.study, *source.study.others):
        per_run = study.per_run
        base = per_run[per_run["variant"] == study.baseline].set_index("seed")
        for variant in study.variants:
            own = per_run[per_run["variant"] == variant].set_index("seed")
            both = own.index.intersection(base.index)
            both = both[(own.loc[both, "is_reached"] & base.loc[both, "is_reached"]).astype(bool)]
            one, other = own.loc[both], base.loc[both]
            row = {
                "label": variant,
                "is_baseline": variant == study.baseline,
                "target": study.target.value or math.nan,
                "num_reached": int(own["is_reached"].sum()),
                "num_runs": len(own),
                "round_s": _per_round(one).mean(),
                "rounds": one["rounds_to_target"].mean(),
                "round_s_ratio": _mean_ratio(_per_round(one), _per_round(other)),
                "rounds_ratio": _mean_ratio(one["rounds_to_target"], other["rounds_to_target"]),
                "time_ratio": _mean_ratio(one["time_to_target_s"], other["time_to_target_s"]),
            }
            rows.append(row)
    return _looked(source, rows)


def compared_frame(source: Source) -> pd.DataFrame:
    """Return the rows of ``decomposition_frame`` that have ratios, without the baseline's own."""
    frame = decomposition_frame(source)
    return frame[~frame["is_baseline"] & frame["time_ratio"].notna()]


def _looked(source: Source, rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Return rows as a frame for a figure: with strategy and shade of each label."""
    strategies = {run.label: run.strategy for run in source.study.runs}
    shades = style.shades(strategies.items())
    frame = pd.DataFrame(rows)
    labels = frame["label"]
    return frame.assign(strategy=labels.map(strategies), shade=labels.map(shades))


def _per_round(runs: pd.DataFrame) -> pd.Series[float]:
    return (runs["time_to_target_s"] / runs["rounds_to_target"]).astype(float)


def _mean_ratio(one: pd.Series[float], other: pd.Series[float]) -> float:
    """Return the geometric mean of the ratios of pairs; NaN without one."""
    if one.empty:
        return math.nan
    return float(np.exp(np.log(one.astype(float) / other.astype(float)).mean()))


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


def chosen(source: Source) -> str:
    """Return what each kind of device was given by each variant: depth, packing, time and wait."""
    rows = [
        [
            markdown(source.study.name(row["label"])),
            markdown(row["profile"]),
            str(row["num_plans"]),
            f"{100 * row['merged_share']:.0f} %",
            *(_cell(row[name]) for name in ("depth", "packed", "took_s", "waiting_s")),
        ]
        for row in chosen_frame(source).to_dict("records")
    ]
    header = ["variant", "device", "plans", "merged", "depth", "packed blocks", "s busy"]
    return markdown_grid([*header, "s waited"], rows)


def chosen_frame(source: Source) -> pd.DataFrame:
    """Return one row for each variant and kind of device: means over all its plans."""
    rows = []
    for variant in source.study.variants:
        frames = [one.profiles for one in source.of_variant(variant)]
        together = pd.concat(frames, ignore_index=True)
        for profile, own in together.groupby("profile"):
            weights = own["num_plans"]
            means = {
                name: float((own[f"mean_{name}"] * weights).sum() / weights.sum())
                for name in ("depth", "packed", "took_s", "waiting_s")
            }
            merged = float(own["num_merged"].sum() / weights.sum())
            row = {"label": variant, "profile": str(profile), "num_plans": int(weights.sum())}
            rows.append({**row, "merged_share": merged, **means})
    return _looked(source, rows)


def bound(source: Source) -> str:
    """Return what depth alone can gain a round: the time of a step at a depth over that at depth 1.

    All blocks run forward whatever the depth, so that no scheduler of depths gains more a round:
    over training all blocks, and over the depth that the baseline trains.
    """
    world, rows = source.world, []
    chosen_depths = chosen_frame(source).set_index("label")["depth"]
    depths = (world.model.num_blocks, round(float(chosen_depths[source.study.baseline].max())), 1)
    steps = source.config.local.steps or 1
    profiles = {device.profile.name: device.profile for device in world.fleet}
    for name, profile in profiles.items():
        whole, base, one = (
            world.cost_model.cost(_plan(source, depth, 0), profile).train_s / steps
            for depth in depths
        )
        rows.append(
            [name, *map(_cell, (whole, base, one)), f"{whole / one:.2f}", f"{base / one:.2f}"]
        )
    of = [f"s a step, depth {depth}" for depth in depths]
    ratios = [f"T({depth}) / T(1)" for depth in depths[:2]]
    return markdown_grid(["device", *of, *ratios], rows)


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


def menu_frame(source: Source) -> pd.DataFrame:
    """Return one row for each depth and way of keeping activations, on the fleet's first device.

    Beside it stand the least and the greatest budget of devices with as much memory.
    """
    world, rows = source.world, []
    profile = world.fleet[0].profile
    budgets = [
        device.memory_budget_bytes
        for device in world.fleet
        if device.profile.memory_bytes == profile.memory_bytes
    ]
    for depth in range(1, world.model.num_blocks + 1):
        for kind, packed, bits in (
            ("kept", 0, 8),
            ("packed to 8 bits", depth, 8),
            ("computed again", depth, 0),
        ):
            cost = world.cost_model.cost(_plan(source, depth, packed, bits), profile)
            row = {
                "depth": depth,
                "activations": kind,
                "memory_bytes": cost.memory.total,
                "step_s": cost.train_s / (source.config.local.steps or 1),
                "budget_low_bytes": min(budgets),
                "budget_high_bytes": max(budgets),
            }
            rows.append(row)
    return pd.DataFrame(rows)


def _plan(source: Source, depth: int, packed: int, bits: int = 8) -> TrainingPlan:
    """Return a plan of so many blocks from the output, of which so many do not keep what is saved.

    The packed blocks are those next to the output, as FedQuad has them.
    """
    model, local = source.world.model, source.config.local
    activations = [32] * model.num_blocks
    activations[model.num_blocks - packed :] = [bits] * packed
    return TrainingPlan(
        device_id=0,
        terms=TermGrid.top_blocks(model.grid_shape(source.config.strategy.rank), depth),
        weight_formats=(UNPACKED,) * model.num_blocks,
        activation_bits=tuple(activations),
        local_steps=local.steps or 1,
        batch_size=local.batch_size,
    )


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
    ratio = _mean_ratio(known[variant], known[baseline])
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
    """Return which seeds of each experiment and variant are kept, and which are still to be run."""
    rows = []
    for one in source.beside(source.name):
        names = reader_names(
            (config.label, config.strategy.kind, config.strategy_title) for config in one.configs
        )
        for label in dict.fromkeys(step.run.label for step in one.steps):
            own = [step for step in one.steps if step.run.label == label]
            seeds = (
                [str(step.run.seed) for step in own if step.is_kept is is_kept]
                for is_kept in (True, False)
            )
            cells = (", ".join(some) or NO_NUMBER for some in seeds)
            rows.append([one.name, markdown(names[label]), *cells])
    header = ["experiment", "variant", "seeds that are kept", "still to be run"]
    return markdown_grid(header, rows, is_numeric=False)


def _cell(value: float) -> str:
    return significant(float(value)) if math.isfinite(value) else NO_NUMBER


def _ratio_cell(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else NO_NUMBER


def speed_up_frame(source: Source) -> pd.DataFrame:
    """Return one row for each variant and target: time ratio to the baseline and its interval.

    Of the seeds at which both reached the target; a target that fewer than all of a variant's
    seeds reached has no row, so that no ratio is of the lucky ones.
    """
    study, rows = source.study, []
    smooth = {
        (run.label, run.manifest["seed"]): run_metrics.smoothed(
            run.rounds, study.metric, study.smoothing
        )
        for run in study.runs
    }
    starts = max(run.rounds[study.metric.name].iloc[0] for run in study.runs)
    for target in (one for one in GRID if one > starts):
        hits = {key: run_metrics.reached(own, target, study.metric) for key, own in smooth.items()}
        for variant in study.variants:
            seeds = [seed for label, seed in hits if label == variant]
            pairs = [(hits[study.baseline, s], hits[variant, s]) for s in seeds]
            known = [(base, own) for base, own in pairs if base and own]
            if len(known) < len(seeds) or variant == study.baseline:
                continue
            logs = np.log([base.at_s / own.at_s for base, own in known])
            center, low, high = (float(np.exp(part)) for part in students(logs))
            rows.append(
                {
                    "label": variant,
                    "target": target,
                    "speed_up": center,
                    "low": low,
                    "high": high,
                    "num_seeds": len(known),
                }
            )
    return _looked(source, rows) if rows else pd.DataFrame()


def blocks_frame(source: Source) -> pd.DataFrame:
    """Return one row for each run and block: the share of merged examples that trained it."""
    shares = {id(one.run): one.blocks for one in source.kept}
    return of_runs(
        [one.run for one in source.kept],
        lambda run: pd.DataFrame(
            {"block": range(1, len(shares[id(run)]) + 1), "share": shares[id(run)]}
        ),
    )


def curve_frame(source: Source) -> pd.DataFrame:
    """Return the evaluated rounds of all runs."""
    return curves.frame(source.study)


PARTS: Mapping[str, Callable[[Source], str]] = {
    "table": table,
    "told-apart": told_apart,
    "findings": findings,
    "decomposition": decomposition,
    "blocks": blocks,
    "chosen": chosen,
    "bound": bound,
    "menu": menu,
    "claims": claims,
    "pacing": pacing,
    "kept": kept_runs,
    "planned": planned,
}
"""What a line of the template may ask for as a table."""

FIGURES: Mapping[str, tuple[str, Callable[[Source], pd.DataFrame], drawn.Draw]] = {
    "accuracy": (
        "The test metric against simulated time: mean and range of the seeds.",
        curve_frame,
        drawn.learning,
    ),
    "speed-up": (
        "How many times sooner than the baseline each accuracy is reached, by the mean of three "
        f"evaluations; from three seeds on with a {100 * CONFIDENCE:.0f} % interval. A curve ends "
        "where a seed fails.",
        speed_up_frame,
        drawn.speed_ups,
    ),
    "performance-profile": (
        "Share of the targets of the config, over all seeds, that a variant reaches within so many "
        "times the time of the fastest one; in brackets the mean over the axis, AlgoPerf's score.",
        lambda source: performance_profile.frame(source.study),
        performance_profile.draw,
    ),
    "coverage": (
        "Share of the merged examples that trained each block, from the input (1) to the output.",
        blocks_frame,
        drawn.coverage,
    ),
    "decomposed": (
        "What a target takes beside the baseline: seconds a round, and rounds. A mark is a target, "
        "the mean over the seeds at which both reached it.",
        compared_frame,
        drawn.decomposition,
    ),
    "menu-drawn": (
        "Peak memory and seconds of one step, by depth and by what becomes of the activations.",
        menu_frame,
        drawn.menu,
    ),
    "devices": (
        "How long each kind of device is at work in a round, and how long it waits for the others.",
        chosen_frame,
        drawn.devices,
    ),
}
"""What a line of the template may ask for as a figure."""


def plan_of(file: Path, results: Path) -> dict[str, list[Step]]:
    """Return the steps of a plan's experiments by name, in its order."""
    plan: dict[str, list[Step]] = {}
    for step in steps_of(file, results, Path("runs")):
        plan.setdefault(step.experiment, []).append(step)
    return plan


def page_of(
    template: str, plan: Mapping[str, Sequence[Step]], results: Path, folder: Path
) -> tuple[str, dict[str, bytes]]:
    """Return the page, and by name the files that it shows, which lie in ``folder`` beside it.

    Raises UserError for a line that asks for what there is not.
    """
    sources: dict[str, Source] = {}
    files: dict[str, bytes] = {}

    def source_of(name: str) -> Source:
        return sources.setdefault(name, Source(name, results, plan))

    def block(found: re.Match[str]) -> str:
        name, text = found.groups()
        return text if source_of(name).has_runs else ""

    def part(found: re.Match[str]) -> str:
        kind, name = found.groups()
        source = source_of(name)
        if kind in PARTS:
            return PARTS[kind](source).rstrip("\n")
        if kind in FIGURES:
            caption, frame_of, draw = FIGURES[kind]
            frame = frame_of(source)
            if frame.empty:
                return f"({caption} Nothing is known of it yet.)"
            shown = render(with_names(frame, source.study.names), draw, style.IEEE)
            stem = f"study-{name}-{kind}"
            files.update({f"{stem}.{suffix}": shown[suffix] for suffix in ("png", "csv")})
            place = f"{folder.name}/{stem}"
            return f"![{caption}]({place}.png)\n\n{caption} [The numbers]({place}.csv)."
        known = ", ".join([*PARTS, *FIGURES])
        raise UserError(f"a part of the page must be one of {known}, got {kind!r}")

    return PLACE.sub(part, WHERE.sub(block, template)), files


def with_headline(readme: str, plan: Mapping[str, Sequence[Step]], results: Path) -> str:
    """Return a README with the table of the study that it names, between its two comments."""

    def table_of(found: re.Match[str]) -> str:
        begin, name, end = found.groups()
        return f"{begin}{headline(Source(name, results, plan))}{end}"

    return HEADLINE.sub(table_of, readme)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("template", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--plan", type=Path, default=HERE / "plan.yaml")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--readme", type=Path, help="a page whose headline follows too")
    given = parser.parse_args(arguments)
    folder = given.page.parent / "images"
    try:
        plan = plan_of(given.plan, given.results)
        page, files = page_of(given.template.read_text("utf-8"), plan, given.results, folder)
        if given.readme:
            readme = with_headline(given.readme.read_text("utf-8"), plan, given.results)
            given.readme.write_text(readme, encoding="utf-8")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    given.page.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
