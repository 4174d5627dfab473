"""Tells which numbers of a study's variants are told apart from the baseline's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.escape import markdown
from analysis.metrics.definitions import METRICS, value_in_words
from analysis.metrics.paired import MIN_SEEDS
from analysis.report.formats import markdown_grid
from analysis.report.table import LEVEL
from analysis.units import SECONDS
from studies.frames import check_shown
from studies.source import Source
from traces.text import listed

NO_NUMBER = "–"
COMPARED = ("time_to_target_s", "{}_at_time", "final_{}", "{}_area", "waiting_s")
"""The numbers in which variants are held against the baseline; {} is the first metric."""


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
    """Return which of the compared numbers are told apart from the baseline's, by variant."""
    study, changes = source.study, _changes(source)
    num_seeds = int(study.num_seeds.min())
    if num_seeds < MIN_SEEDS:
        seeds = "1 seed" if num_seeds == 1 else f"{num_seeds} seeds"
        return f"With {seeds} nothing can be told apart: the changes below are values alone."
    apart: dict[str, list[str]] = {}
    for one in changes:
        if one.p < LEVEL:
            variant, number = one.named
            apart.setdefault(variant, []).append(f"{number[:1].lower()}{number[1:]} ({one.change})")
    num_known = sum(not math.isnan(one.p) for one in changes)
    count = f"{sum(map(len, apart.values()))} of {num_known} compared numbers"
    said = f"With {num_seeds} seeds {count} can be told apart from {study.name(study.baseline)}'s"
    lines = [f"* {markdown(f'{variant}: {listed(numbers)}')}" for variant, numbers in apart.items()]
    return "\n".join([markdown(said) + (":\n" if lines else "."), *lines])


@dataclass(frozen=True)
class Change:
    """A change is one number of a variant against the baseline, over the seeds of both."""

    of: tuple[str, str]  # the variant and the column of the number
    named: tuple[str, str]  # their names
    change: str
    interval: str
    p: float  # after Holm's correction; NaN if it is not known
    pairs: str

    @property
    def verdict(self) -> tuple[str, str]:
        """Return the p value in words, and whether the number is told apart: yes, no or unknown."""
        if math.isnan(self.p):
            return NO_NUMBER, "unknown"
        p = "< 0.001" if self.p < 0.001 else f"{self.p:.3f}"
        return p, "yes" if self.p < LEVEL else "no"


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
                of=(row["variant"], row["metric"]),
                named=(study.name(row["variant"]), title),
                change=f"{value} {'×' if by_ratio else 'points'}",
                interval=NO_NUMBER if math.isnan(ends[1]) else f"[{low}, {high}]",
                p=float(row["p_holm"]),
                pairs=f"{row['num_pairs']}" + (f" (+{c})" if (c := row["num_censored"]) else ""),
            )
        )
    return changes


def overview(source: Source, labels: Sequence[str]) -> str:
    """Return what these variants came to in each setting of the plan, against its baseline.

    A setting is an experiment with a target and more than one seed; one without a variant has no
    row for it. What is told apart is marked. Raises UserError for a variant that no setting has.
    """
    kept = [one for one in source.beside("") if one.has_runs]
    settings = [
        one for one in kept if one.study.target.value is not None and one.study.num_seeds.min() > 1
    ]
    known = list(dict.fromkeys(label for one in settings for label in one.study.variants))
    check_shown(labels, known)
    rows = []
    for one in settings:
        study, found = one.study, {change.of: change for change in _changes(one)}
        target = value_in_words(study.metric, study.target.value or math.nan)
        reached = study.per_run.groupby("variant")["is_reached"].agg(["sum", "count"])
        for label in (label for label in labels or known if label in study.variants):
            columns = ("time_to_target_s", f"final_{study.metric.name}", "waiting_s")
            cells = [_marked(found.get((label, column))) for column in columns]
            times = ["{} of {}".format(*reached.loc[k]) for k in (label, study.baseline)]
            rows.append([one.name, target, markdown(study.name(label)), *times, *cells])
    header = ["setting", "target", "variant", "reached by", "by the baseline", "time to the target"]
    return markdown_grid([*header, "final value", "wait a round"], rows, is_numeric=False)


def _marked(change: Change | None) -> str:
    """Return a change with its interval, marked where it is told apart; a dash without one."""
    if change is None:
        return NO_NUMBER
    known = change.interval != NO_NUMBER
    text = f"{change.change} {change.interval}" if known else change.change
    return f"**{text}**" if change.p < LEVEL else text
