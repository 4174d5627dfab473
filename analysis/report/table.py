"""The table of a study: metrics down, variants across, an interval where there are several seeds.

A table is made once, with every unit and rounding in it; ``formats`` writes it for a terminal, as
Markdown and as LaTeX, and the page of a report turns it on its side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.metrics.definitions import METRICS, Metric
from analysis.metrics.seeds import Estimate
from analysis.metrics.study import Study
from analysis.units import Unit, title

NOT_REACHED = "not reached"
NO_NUMBER = "–"


@dataclass(frozen=True)
class TableCell:
    """One number as text. ``value`` is what it is sorted by, NaN where there is no number."""

    text: str
    value: float
    is_best: bool = False


@dataclass(frozen=True)
class TableRow:
    """One metric, with its unit in the title and a cell for each variant."""

    title: str
    cells: tuple[TableCell, ...]


@dataclass(frozen=True)
class StudyTable:
    """Rows of metrics over columns of variants, and the note that its reader needs."""

    variants: tuple[str, ...]
    rows: tuple[TableRow, ...]
    note: str


def study_table(study: Study) -> StudyTable:
    """Return the table of a study.

    A metric of which no variant has a number has no row, nor have the metrics of the target where
    there is no target.
    """
    rows = [_reached(study)] if study.target.accuracy is not None else []
    rows += [_row(study, metric) for metric in METRICS if _is_shown(study, metric)]
    shown = tuple(row for row in rows if row is not None)
    return StudyTable(tuple(study.variants), shown, note(study))


def note(study: Study) -> str:
    """Return what the reader of the table must know: seeds, estimates, target, baseline."""
    target = study.target
    timed = (
        f"no target: {target.rule}"
        if target.accuracy is None
        else f"target {percent(target.accuracy)}: {target.rule}"
    )
    words = f"best of a row marked; {timed}; baseline {study.baseline}"
    few, most = int(study.num_seeds.min()), int(study.num_seeds.max())
    if most == 1:
        return words
    number = str(most) if few == most else f"{few} to {most}"
    return f"{number} seeds a variant; [95 % interval]; to the target: median, else: mean; {words}"


def percent(accuracy: float) -> str:
    """Return an accuracy in percent, exactly as it was asked for."""
    return f"{100 * accuracy:.6g} %"


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


def _is_shown(study: Study, metric: Metric) -> bool:
    if metric.shown == "never" or (metric.is_to_target and study.target.accuracy is None):
        return False
    values = [one.value for one in study.estimates(metric.column).values()]
    known = [value for value in values if not math.isnan(value)]
    return any(known) if metric.shown == "where it occurs" else bool(known)


def _words(study: Study) -> dict[str, str]:
    accuracy = study.target.accuracy
    target = "" if accuracy is None else f"{percent(accuracy)} accuracy"
    return {"target": target, "baseline": study.baseline}


def _reached(study: Study) -> TableRow | None:
    """Return how many runs of each variant reached the target, where there are several."""
    if study.num_seeds.max() == 1:
        return None
    hits = study.per_run.groupby("variant", sort=False, observed=True)["is_reached"]
    counts = [(int(own.sum()), len(own)) for _, own in hits]
    cells = [TableCell(f"{reached} of {num}", reached / num) for reached, num in counts]
    return TableRow(f"Runs that reached {_words(study)['target']}", tuple(cells))


def _row(study: Study, metric: Metric) -> TableRow:
    """Return the row of a metric: every cell in one unit, which stands in the title."""
    own = list(study.estimates(metric.column).values())
    unit = unit_of(metric, own)
    texts = [cell_text(metric, estimate, unit) for estimate in own]
    is_best = _best(own, [text.partition(" [")[0] for text in texts], metric.better)
    values = [_sort_value(metric, estimate) for estimate in own]
    cells = zip(texts, values, is_best, strict=True)
    name = title(metric.title.format(**_words(study)), unit)
    return TableRow(name, tuple(TableCell(*cell) for cell in cells))


def unit_of(metric: Metric, estimates: Iterable[Estimate]) -> Unit:
    """Return the one unit of a row."""
    return metric.scale.unit(end for one in estimates for end in (one.value, one.upper))


def _sort_value(metric: Metric, estimate: Estimate) -> float:
    """Return the number that a cell is sorted by: a bound for a ratio, none for what has no end."""
    value, upper = estimate.value, estimate.upper
    if metric.estimate == "ratio" and value == 0:
        value = upper
    elif metric.estimate == "median" and math.isinf(upper):
        return math.nan
    return value if math.isfinite(value) else math.nan


def _best(own: Sequence[Estimate], texts: Sequence[str], better: str) -> tuple[bool, ...]:
    """Return which cells are the best whatever lies behind the bounds of the others.

    Cells that read like the best are marked with it; none is where all read alike.
    """
    if not better or len(set(texts)) == 1:
        return (False,) * len(texts)
    sign = 1.0 if better == "lower" else -1.0
    ends = sign * np.array([(one.value, one.upper) for one in own])
    hopeful, certain = ends.min(axis=1), ends.max(axis=1)
    winners = {
        text
        for place, text in enumerate(texts)
        if certain[place] <= np.nanmin(np.delete(hopeful, place), initial=math.inf)
    }
    return tuple(text in winners for text in texts)
