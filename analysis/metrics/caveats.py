"""Says what a reader must know before taking the numbers of a study for evidence."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd

from analysis.metrics.definitions import value_in_words
from devices.tasks.task import Metric
from traces.text import listed

MIN_SEEDS = 5  # fewer seeds than this in a comparison get a warning
MAX_LOST_SHARE = 0.1
NOISE_ERRORS = 2.0  # a target nearer than this many standard errors to a best gets a warning


def warnings_of(
    per_run: pd.DataFrame, target: float | None, smoothing: int, metric: Metric
) -> list[str]:
    """Return the warnings on a study, a sentence each, from its table of runs."""
    found = [*_of_seeds(per_run), *_of_absent(per_run), *_of_losses(per_run)]
    if target is not None:
        found += _of_noise(per_run, target, smoothing, metric)
        found += _of_censored(per_run, target, metric)
    return found


def _of_seeds(per_run: pd.DataFrame) -> Iterator[str]:
    fewest = int(per_run.groupby("variant", sort=False)["seed"].nunique().min())
    if fewest == 1:
        yield "One seed: a difference between variants may be chance."
    elif fewest < MIN_SEEDS:
        yield f"{fewest} seeds: a comparison takes at least {MIN_SEEDS}."


def _of_absent(per_run: pd.DataFrame) -> Iterator[str]:
    """Name the seeds that a variant lacks and another has, with all variants that lack the same."""
    seeds = sorted(set(per_run["seed"]))
    alike: dict[tuple[int, ...], list[str]] = {}
    for variant, own in per_run.groupby("variant", sort=False)["seed"]:
        if lacking := tuple(seed for seed in seeds if seed not in set(own)):
            alike.setdefault(lacking, []).append(str(variant))
    for lacking, variants in alike.items():
        which = f"seed{'s' * bool(lacking[1:])} {listed([*map(str, lacking)])}"
        verb = "have" if variants[1:] else "has"
        yield f"{listed(variants)} {verb} no finished run at {which}, which other variants have."


def _of_losses(per_run: pd.DataFrame) -> Iterator[str]:
    shares = per_run.groupby("variant", sort=False)["lost_turn_share"].mean()
    for variant, share in shares.items():
        if share > MAX_LOST_SHARE:
            yield (
                f"{variant} lost {100 * share:.0f} % of its devices' turns (OOM, sat out, late, "
                "offline): their data is missing from its model, and its rounds are shorter for it."
            )


def _of_noise(
    per_run: pd.DataFrame, target: float, smoothing: int, metric: Metric
) -> Iterator[str]:
    """Yield a warning for variants whose best values lie within their noise of the target.

    The noise is ``NOISE_ERRORS`` standard errors of the mean of ``smoothing`` evaluations.
    """
    column = f"{metric.name}_error"
    if not {"smoothed_best", column} <= set(per_run):
        return
    alike: dict[tuple[str, str], list[str]] = {}
    for variant, own in per_run.groupby("variant", sort=False):
        error = float(own[column].mean()) / math.sqrt(smoothing)
        margin = float((own["smoothed_best"] - target).abs().min())
        if margin < NOISE_ERRORS * error:
            numbers = f"{100 * margin:.1f}", f"{100 * error:.1f}"
            alike.setdefault(numbers, []).append(str(variant))
    for (points, noise), variants in alike.items():
        whose, each = ("its", "") if len(variants) == 1 else ("their", " each")
        yield (
            f"The target of {100 * target:.6g} % lies {points} points from the best of "
            f"{listed(variants)}{each}, within the noise of {whose} evaluations "
            f"(standard error {noise} points)."
        )


def _of_censored(per_run: pd.DataFrame, target: float, metric: Metric) -> Iterator[str]:
    """Yield a warning for each number of runs that missed the target, with the variants it is of.

    A run whose strategy has no global model cannot miss it, and is left out.
    """
    alike: dict[tuple[int, int], list[str]] = {}
    for variant, own in per_run.groupby("variant", sort=False):
        num_missed = int((~own["is_reached"].astype(bool) & own["spent_s"].notna()).sum())
        if num_missed:
            alike.setdefault((num_missed, len(own)), []).append(str(variant))
    for (num_missed, num), variants in alike.items():
        each = "" if len(variants) == 1 else "each "
        yield (
            f"{num_missed} of {num} runs {each}of {listed(variants)} did not reach "
            f"{value_in_words(metric, target)}: what they took is known as a bound alone."
        )
