"""Says in sentences what variants came to: the target, the speed-up and the authors' claims."""

from __future__ import annotations

import math

from analysis.metrics.definitions import value_in_words
from analysis.metrics.study import Study
from analysis.report.table import TIME_TO_TARGET, cell_text, unit_of


def findings(study: Study) -> list[str]:
    """Return one sentence a variant on the target."""
    if study.target.value is None:
        return [f"No target {study.metric.phrase}: {study.target.rule}."]
    return [_finding(study, variant) for variant in study.variants]


def claims(study: Study) -> list[str]:
    """Return the authors' claims for the strategies present, each beside what was measured here."""
    lines = []
    kinds = dict(zip(study.per_run["variant"], study.per_run["strategy"], strict=True))
    for variant, strategy in kinds.items():
        if variant == study.baseline:
            continue
        if strategy == "fedquad":
            lines.append(
                "FedQuad's authors claim 1.4-5.3x faster convergence to a target accuracy than"
                f" their baselines. Measured here, {study.name(variant)}:"
                f" {_gain(study, variant)}."
            )
        if strategy == "haflq":
            lines.append(
                "HAFLQ's authors claim 31 % less memory, 49 % less communication and 50 % more"
                f" accuracy than their baseline. Measured here, {study.name(variant)} against"
                f" {study.name(study.baseline)}: {_changes(study, variant)}."
            )
    return lines


def _finding(study: Study, variant: str) -> str:
    """Return what one variant took to the target, in a sentence."""
    name, target = study.name(variant), value_in_words(study.metric, study.target.value or 0.0)
    hits = study.per_run.loc[study.per_run["variant"] == variant, "is_reached"]
    gain = "" if variant == study.baseline else f"; {_gain(study, variant)}"
    if len(hits) == 1:
        if not hits.iloc[0]:
            return f"{name} did not reach {target}."
        return f"{name} reached {target} after {_time_to_target(study, variant)}{gain}."
    reached = f"{name} reached {target} in {int(hits.sum())} of {len(hits)} runs"
    if not hits.any():
        return f"{reached}."
    return f"{reached}, median time {_time_to_target(study, variant)}{gain}."


def _time_to_target(study: Study, variant: str) -> str:
    estimates = study.estimates(TIME_TO_TARGET.column)
    unit = unit_of(TIME_TO_TARGET, estimates.values())
    text = cell_text(TIME_TO_TARGET, estimates[variant], unit)
    value, bracket, interval = text.partition(" [")
    return f"{value} {unit.name}{bracket}{interval}"


def _gain(study: Study, variant: str) -> str:
    """Return the speed-up over the baseline in words."""
    base = study.name(study.baseline)
    lower, upper, *_ = study.estimates("speed_up")[variant]
    if math.isnan(lower) or (lower == 0 and math.isinf(upper)):
        return "no speed-up, since neither it nor the baseline reached a target in training"
    if lower == 0:
        return f"less than {upper:.2f} times as fast as {base} (not reached)"
    if math.isinf(upper):
        return f"more than {lower:.2f} times as fast as {base} ({base} never reached it)"
    if lower < upper:
        return f"{lower:.2f} to {upper:.2f} times as fast as {base}"
    return f"{lower:.2f} times as fast as {base}"


def _changes(study: Study, variant: str) -> str:
    """Return how means of memory, bytes and the first metric differ from the baseline's."""

    def means(*columns: str) -> tuple[float, float]:
        estimates = [study.estimates(column) for column in columns]
        own, base = (sum(e[name].value for e in estimates) for name in (variant, study.baseline))
        return own, base

    words, metric = [], study.metric
    final = f"final_{metric.name}"
    for name, columns in {
        "mean memory that a plan needs": ("planned_memory_bytes",),
        "bytes both ways": ("download_bytes", "upload_bytes"),
        f"final {metric.phrase}": (final,),
    }.items():
        own, base = means(*columns)
        known = base > 0 and not math.isnan(own)
        words.append(f"{name} {100 * (own / base - 1):+.0f} %" if known else f"{name} no number")
    own, base = means(final)
    points = 100 * (own - base) if metric.unit == "share" else math.nan
    return ", ".join(words) + ("" if math.isnan(points) else f" ({points:+.1f} points)")
