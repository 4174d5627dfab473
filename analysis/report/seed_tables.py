"""The table of a study: metrics down, variants across, with intervals over the seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from rich.table import Table

from analysis.metrics.study import Study
from analysis.report import tables
from analysis.report.tables import NO_NUMBER, NOT_REACHED, Line, Metric
from analysis.units import ONE, PERCENT, Unit, choose, significant

OVER_SEEDS = (
    Metric("Mean accuracy over time", "accuracy_area", (PERCENT,), "high"),
    Metric("Straggler share", "straggler_share", (PERCENT,)),
    Metric("Utilisation", "utilisation", (PERCENT,), "high"),
    Metric("Mean staleness", "mean_staleness", (ONE,), ""),
    Metric("Participation fairness", "participation_fairness", best="high"),
    Metric("Median device's accuracy", "device_accuracy_median", (PERCENT,), "high"),
    Metric("Worst tenth of devices' accuracy", "device_accuracy_q10", (PERCENT,), "high"),
)


def lines(study: Study) -> list[Line]:
    """Every row of the table; a row of which no variant has the number is left out."""
    found = study.summary.set_index(["metric", "variant"]).sort_index()
    target = study.target.accuracy
    words = {
        "target": f"{100 * target:g} % accuracy" if target is not None else "",
        "baseline": study.baseline,
    }
    chosen = (
        *(tables.TO_TARGET if target is not None else ()),
        *tables.TOTALS,
        *tables.LOSSES,
        *OVER_SEEDS,
    )
    rows = []
    if target is not None:
        rows.append(_reached(study, words["target"]))
    for metric in chosen:
        if metric.column not in found.index:
            continue
        own = found.loc[metric.column].reindex(study.runs.variants)
        is_idle = metric in tables.LOSSES and not own["value"].any()
        if own["value"].notna().any() and not is_idle:
            rows.append(_line(own, metric, metric.title.format(**words)))
    return rows


def note(study: Study) -> str:
    """What the reader of the table must know."""
    seeds = study.per_run.groupby("variant", sort=False, observed=True)["seed"].nunique()
    num = str(seeds.min()) if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    return (
        f"{num} seeds a variant; [95 % interval]; to the target: median, else: mean; "
        + tables.rule(study.target, study.baseline)
    )


def rich_table(study: Study) -> Table:
    """The table for a terminal. The best value is bold and starred."""
    return tables.to_rich(study.runs.variants, lines(study), note(study))


def files(study: Study) -> dict[str, str]:
    """The table in three formats, and the numbers of every run: text by file name."""
    names, rows, said = study.runs.variants, lines(study), note(study)
    left_out = "".join(f"\nLeft out: {line}\n" for line in study.runs.left_out)
    return {
        "table.md": tables.to_markdown(names, rows, said) + left_out,
        "table.tex": tables.to_latex(names, rows, said),
        "table.csv": study.summary.to_csv(index=False, lineterminator="\n"),
        "runs.csv": study.per_run.to_csv(index_label="run", lineterminator="\n"),
    }


def _reached(study: Study, target: str) -> Line:
    """How many of the runs reached the target."""
    hits = study.per_run.groupby("variant", sort=False, observed=True)["is_reached"]
    counts = [(int(hits.get_group(v).sum()), len(hits.get_group(v))) for v in study.runs.variants]
    return Line(
        f"Runs that reached {target}",
        tuple(f"{reached} of {num}" for reached, num in counts),
        (False,) * len(counts),
    )


def _line(own: pd.DataFrame, metric: Metric, title: str) -> Line:
    """One row: every cell in one unit, which stands in the title."""
    unit = choose(metric.scale, [*own["value"], *own["upper"]])
    cells = tuple(_cell(row, metric, unit) for row in own.itertuples())
    named = f"{title} ({unit.name})" if unit.name else title
    centers = [cell.partition(" [")[0] for cell in cells]
    return Line(named, cells, _best(own, centers, metric.best))


def _best(own: pd.DataFrame, centers: Sequence[str], direction: str) -> tuple[bool, ...]:
    """Which cells are the best whatever lies behind the bounds of the others."""
    sign = 1.0 if direction == "low" else -1.0
    ends = sign * own[["value", "upper"]].to_numpy()
    hopeful, certain = ends.min(axis=1), ends.max(axis=1)
    winners = {
        center
        for k, center in enumerate(centers)
        if certain[k] <= np.nanmin(np.delete(hopeful, k), initial=math.inf)
    }
    if not direction or len(set(centers)) == 1:
        return (False,) * len(centers)
    return tuple(center in winners for center in centers)


def _cell(row: object, metric: Metric, unit: Unit) -> str:
    """A number or the bounds on it, and its interval."""
    value, upper, low, high = (float(getattr(row, n)) for n in ("value", "upper", "low", "high"))
    if math.isnan(value):
        return NO_NUMBER
    if value == 0 and math.isinf(upper):
        return NOT_REACHED
    if math.isinf(upper):
        text = f"> {_number(value, metric, unit)}"
        return text if metric.column == "speed_up" else f"{NOT_REACHED} ({text})"
    if value == upper:
        text = _number(value, metric, unit)
    elif value == 0:
        text = f"< {_number(upper, metric, unit)}"
    else:
        text = f"{_number(value, metric, unit)} to {_number(upper, metric, unit)}"
    if math.isnan(low):
        return text
    ends = [_number(low, metric, unit), "∞" if math.isinf(high) else _number(high, metric, unit)]
    return text if ends[0] == ends[1] == text else f"{text} [{', '.join(ends)}]"


def _number(value: float, metric: Metric, unit: Unit) -> str:
    scaled = value / unit.size
    is_whole = metric.write is not significant and scaled.is_integer()
    return metric.write(scaled) if is_whole or metric.column == "speed_up" else significant(scaled)
