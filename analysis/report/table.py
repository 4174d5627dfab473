"""Makes the table of a study: metrics down, variants across, intervals over several seeds.

A table is made once, with every unit and rounding in it; ``formats`` writes it for a terminal, as
Markdown and as LaTeX, and ``pages`` as HTML.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from algorithms.registry import REFERENCES
from analysis.metrics.definitions import GROUP_OF, METRICS, Metric, value_in_words
from analysis.metrics.paired import MIN_SEEDS, beats, holm
from analysis.metrics.seeds import Estimate
from analysis.metrics.side_by_side import Studies
from analysis.metrics.study import Study
from analysis.units import BYTES, JOULES, NO_NUMBER, SECONDS, Unit, title
from traces.text import is_number

NOT_REACHED = "not reached"
TIME_TO_TARGET = next(metric for metric in METRICS if metric.column == "time_to_target_s")
LEVEL = 0.05
"""The significance level of the tests that mark a best value, after Holm's correction."""


@dataclass(frozen=True)
class TableCell:
    """A table cell is a number as text."""

    text: str
    is_best: bool = False


@dataclass(frozen=True)
class TableRow:
    """A table row is one metric, with its unit in the title and a cell for each variant.

    A row without cells is the heading of those below it. ``group`` is the name of the metrics that
    a page shows under one heading.
    """

    title: str
    cells: tuple[TableCell, ...]
    group: str = ""


@dataclass(frozen=True)
class StudyTable:
    """A study table has rows of metrics, columns of variants, and notes for its reader.

    ``variants`` are the names for readers.
    """

    variants: tuple[str, ...]
    rows: tuple[TableRow, ...]
    note: str
    warnings: tuple[str, ...] = ()


def study_table(study: Study) -> StudyTable:
    """Return the table of a study.

    A metric of which no variant has a number has no row, nor have the metrics of the target where
    there is no target. The further targets of the config have rows of their own.
    """
    rows: list[TableRow | None] = []
    for one in (study, *study.others):
        rows += [_reached(one)] if one.target.value is not None else []
        rows += [_row(one, m) for m in METRICS if m.is_to_target and _is_shown(one, m)]
    rows += [_row(study, m) for m in METRICS if not m.is_to_target and _is_shown(study, m)]
    shown = tuple(row for row in rows if row is not None)
    return StudyTable(tuple(map(study.name, study.variants)), shown, note(study), study.warnings)


def side_by_side(studies: Studies) -> StudyTable:
    """Return one table of all blocks, one below the other, over the variants of any of them."""
    tables = {block.heading: study_table(study) for block, study in studies.items()}
    if len(tables) == 1:
        return next(iter(tables.values()))
    variants = tuple(dict.fromkeys(name for table in tables.values() for name in table.variants))
    rows: list[TableRow] = []
    for heading, table in tables.items():
        rows.append(TableRow(heading, ()))
        for row in table.rows:
            own = dict(zip(table.variants, row.cells, strict=True))
            cells = tuple(own.get(name, TableCell("")) for name in variants)
            rows.append(replace(row, cells=cells))
    said = tuple(
        f"{heading}: {line}"
        for heading, table in tables.items()
        for line in (table.note, *table.warnings)
    )
    number = f"{len(tables)} blocks, of runs that met unlike conditions"
    return StudyTable(
        variants, tuple(rows), f"{number}; each has a target, baseline and marks of its own", said
    )


def note(study: Study) -> str:
    """Return what the reader of the table must know: seeds, estimates, target, baseline."""
    target = study.target
    timed = (
        f"no target: {target.rule}"
        if target.value is None
        else f"target {value_in_words(study.metric, target.value)}: {target.rule}"
    )
    if target.value is not None and study.smoothing > 1:
        timed += f", by the mean of {study.smoothing} evaluations"
    words = f"{timed}; baseline {study.name(study.baseline)}"
    if study.charged:
        words += f"; trained as a proxy, at the costs of {', '.join(study.charged)}"
    if private := privacy_in_words(study):
        words += f"; {private}"
    few, most = int(study.num_seeds.min()), int(study.num_seeds.max())
    number = str(most) if few == most else f"{few} to {most}"
    if most == 1:
        return f"one seed, no value is marked as the best; {words}"
    if most < MIN_SEEDS:
        return f"{number} seeds a variant, the value of each; no value is marked; {words}"
    return (
        f"{number} seeds a variant; [95 % interval], none where all seeds have one value; to the "
        "target: median, speed-up: geometric mean, else: mean; marked: the best of a row where it "
        f"is told apart from every other (paired t test, Holm, {100 * LEVEL:.0f} %); {words}"
    )


def privacy_in_words(study: Study) -> str:
    """Return the differential privacy that runs of the study had; "" where none had any."""
    told: dict[str, None] = {}
    for run in study.runs:
        epsilon, delta = run.manifest.get("epsilon"), run.manifest.get("delta")
        if is_number(epsilon) and is_number(delta):
            name = study.name(run.label)
            told[f"{name} has epsilon {epsilon:.4g} at delta {delta:.2g}"] = None
    return f"differential privacy of devices: {', '.join(told)}" if told else ""


def cell_text(metric: Metric, estimate: Estimate, unit: Unit) -> str:
    """Return an estimate as text: the number or the bounds on it, and its interval."""
    value, upper, low, high, _ = estimate

    def number(part: float) -> str:
        return "∞" if math.isinf(part) else metric.scale.number(part, unit)

    if math.isnan(value):
        return NO_NUMBER
    if math.isinf(upper):
        bound = f"> {number(value)}"
        if value == 0:
            return NOT_REACHED
        return bound if metric.estimate == "ratio" else f"{NOT_REACHED} ({bound})"
    if value == upper:
        text = number(value)
    elif value == 0:
        text = f"< {number(upper)}"
    else:
        text = f"{number(value)} to {number(upper)}"
    if math.isnan(low) or number(low) == number(high) == text:
        return text
    return f"{text} [{number(low)}, {number(high)}]"


def _known(estimate: Estimate, num_runs: int) -> str:
    """Return how many runs have a number, in brackets; empty where all or none of them have it."""
    return f" ({estimate.num_known} of {num_runs})" if 0 < estimate.num_known < num_runs else ""


def _is_shown(study: Study, metric: Metric) -> bool:
    if metric.shown == "never" or (metric.is_to_target and study.target.value is None):
        return False
    values = [one.value for one in study.estimates(metric.column).values()]
    known = [value for value in values if not math.isnan(value)]
    return any(known) if metric.shown == "where it occurs" else bool(known)


def _words(study: Study) -> dict[str, str]:
    """Return what stands in the titles of rows in place of their names in braces."""
    value, budget, metric = study.target.value, study.budget, study.metric
    target = "" if value is None else value_in_words(metric, value)
    is_named = metric.unit != "share"
    return {
        "target": target if is_named or not target else f"{target} {metric.phrase}",
        "baseline": study.name(study.baseline),
        "seconds": SECONDS.text(budget.at_s) if budget else "",
        "bytes": BYTES.text(budget.transfer_bytes) if budget else "",
        "joules": JOULES.text(budget.energy_j) if budget else "",
    }


def _reached(study: Study) -> TableRow | None:
    """Return how many runs of each variant reached the target, where there are several."""
    if study.num_seeds.max() == 1:
        return None
    hits = study.per_run.groupby("variant", sort=False, observed=True)["is_reached"]
    cells = [TableCell(f"{int(own.sum())} of {len(own)}") for _, own in hits]
    title = f"Runs that reached {_words(study)['target']}"
    return TableRow(title, tuple(cells), GROUP_OF["is_reached"])


def _row(study: Study, metric: Metric) -> TableRow:
    """Return the row of a metric: every cell in one unit, which stands in the title."""
    own = list(study.estimates(metric.column).values())
    unit = unit_of(metric, own)
    texts = [
        _seed_values(study, variant, metric, unit)
        or cell_text(metric, estimate, unit) + _known(estimate, int(num_runs))
        for variant, estimate, num_runs in zip(study.variants, own, study.num_seeds, strict=True)
    ]
    is_best = _best(study, metric, own, [text.partition(" [")[0] for text in texts])
    cells = tuple(map(TableCell, texts, is_best))
    name = title(metric.title.format(**_words(study)), unit)
    return TableRow(name, cells, GROUP_OF[metric.column])


def unit_of(metric: Metric, estimates: Iterable[Estimate]) -> Unit:
    """Return the one unit of a row."""
    return metric.scale.unit(end for one in estimates for end in (one.value, one.upper))


def _seed_values(study: Study, variant: str, metric: Metric, unit: Unit) -> str:
    """Return the values of two seeds, which are too few for an interval; empty for any other.

    A run that did not reach the target stands with the bound that is known.
    """
    runs = study.per_run[study.per_run["variant"] == variant]
    if len(runs) != MIN_SEEDS - 1 or metric.column not in runs:
        return ""
    words = []
    for _, run in runs.iterrows():
        value = float(run[metric.column])
        bound = float(run[metric.at_least]) if metric.at_least else math.nan
        if not math.isnan(value):
            words.append(metric.scale.number(value, unit))
        elif not math.isnan(bound):
            words.append(f"> {metric.scale.number(bound, unit)}")
        else:
            words.append(NO_NUMBER)
    return words[0] if len(set(words)) == 1 else ", ".join(words)


def _best(
    study: Study, metric: Metric, own: Sequence[Estimate], texts: Sequence[str]
) -> tuple[bool, ...]:
    """Return which cells are the best and told apart from all others on the same seeds.

    References are left out (``Strategy.is_reference``): they are there to be held against. Cells
    that read like the best stand with it; none is marked where all that have a number read
    alike.
    """
    nothing = (False,) * len(texts)
    tested = TIME_TO_TARGET if metric.estimate == "ratio" else metric
    if not metric.better or tested.column not in study.per_run or len(set(texts)) == 1:
        return nothing
    sign = 1.0 if metric.better == "lower" else -1.0
    strategies = study.per_run.groupby("variant", sort=False, observed=True)["strategy"].first()
    judged = [k for k, name in enumerate(study.variants) if strategies[name] not in REFERENCES]
    known = [k for k in judged if math.isfinite(own[k].value) and own[k].value == own[k].upper]
    if not known:
        return nothing
    best = texts[min(known, key=lambda k: sign * own[k].value)]
    alike = [k for k in judged if texts[k] == best]
    rest = [
        k
        for k in judged
        if texts[k] != best and (metric.estimate == "ratio" or not math.isnan(own[k].value))
    ]
    if not rest:  # no other variant has a number to compare with
        return nothing
    runs = [study.by_variant[name] for name in study.variants]
    for place in alike:
        found = [beats(runs[place], runs[other], tested) for other in rest]
        if any(math.isnan(p) for p in found) or max(holm(found), default=0.0) >= LEVEL:
            return nothing
    return tuple(k in alike for k in range(len(texts)))
