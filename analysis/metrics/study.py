"""Compares variants: the numbers of every run, and estimates over the seeds of a variant."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from algorithms.registry import REFERENCES
from analysis.metrics import run_metrics as metrics
from analysis.metrics.caveats import warnings_of
from analysis.metrics.definitions import BESIDE, JUDGES, SMOOTHING, wrong_target
from analysis.metrics.paired import SeedRuns, by_variant, differences
from analysis.metrics.run_metrics import Spent, Target
from analysis.metrics.seeds import NOTHING, Estimate, over_seeds, speed_ups
from analysis.runs.blocks import require_comparable
from analysis.runs.files import RunError, place_of, read_config, read_table, title_of
from analysis.runs.frames import RunSet
from analysis.runs.load import Run
from analysis.runs.names import reader_names
from devices.datasets.own import portable_name
from devices.tasks.task import Metric
from traces.text import did_you_mean, finite_or_nan, is_number

NAN = math.nan
ROUND_COLUMNS = (
    "round", "closed_s", "download_bytes", "upload_bytes", "energy_j", "waiting_s",
    "num_aggregated", "num_sat_out", "num_oom", "num_late", "num_offline", "num_crashed",
    "num_lost", "num_rejected",
)  # fmt: skip
CLIENT_COLUMNS = (
    "round", "device_id", "outcome", "started_s", "download_s", "train_s", "upload_s",
    "finished_s", "waiting_s", "staleness", "download_bytes", "upload_bytes", "energy_compute_j",
    "energy_radio_j", "memory_budget_bytes", "peak_memory_bytes",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Study:
    """A study compares variants under the same conditions for each seed, one seed or many.

    ``per_run`` has one row a run (index: its name), with variant, strategy, seed and the column of
    every metric in SI units, NaN where a run does not have the number. ``summary`` has one row a
    variant and metric, as ``over_seeds`` gives it. ``names`` are the variants' names for readers;
    the tables hold the variants themselves. ``others`` are studies of the same runs at the
    further targets that their configs name, the hardest first.
    """

    target: Target
    baseline: str  # the variant that others are compared with
    per_run: pd.DataFrame
    summary: pd.DataFrame
    metric: Metric  # the first of the task, by which every run is judged
    names: Mapping[str, str] = field(default_factory=dict)
    runs: tuple[Run, ...] = ()  # with all their tables; empty if only the study's are wanted
    left_out: tuple[str, ...] = ()  # runs that could not be read, and why
    budget: Spent | None = None  # what every run has spent; the metric is compared within it
    others: tuple[Study, ...] = ()
    smoothing: int = SMOOTHING  # the number of evaluations whose mean must reach the target
    devices: tuple[int, ...] = ()  # those that figures of single devices show; all if empty
    charged: tuple[str, ...] = ()  # larger models whose costs runs are charged, by name
    warnings: tuple[str, ...] = ()  # what to know before the numbers are taken for evidence

    @property
    def variants(self) -> list[str]:
        """Return the names of the variants, in order of their first run."""
        return list(dict.fromkeys(self.per_run["variant"]))

    @property
    def num_seeds(self) -> pd.Series[int]:
        """Return the number of seeds of each variant."""
        return self.per_run.groupby("variant", sort=False, observed=True)["seed"].nunique()

    @property
    def differences(self) -> pd.DataFrame:
        """Return the change of each variant and metric against the baseline, paired by seed."""
        return differences(self.per_run, self.baseline)

    def run_row(self, run: Run) -> pd.Series[Any]:
        """Return the row of ``per_run`` of one of ``runs``."""
        return self.per_run.loc[[_run_name(run)]].iloc[0]

    def name(self, variant: str) -> str:
        """Return the name of a variant for readers."""
        return self.names.get(variant, variant)

    def estimates(self, metric: str) -> dict[str, Estimate]:
        """Return the estimate of one metric for each variant, as ``summary`` has it."""
        found = self._estimates
        return {variant: found.get((variant, metric), NOTHING) for variant in self.variants}

    @cached_property
    def by_variant(self) -> dict[str, SeedRuns]:
        """Return the runs of each variant, by seed."""
        return by_variant(self.per_run)

    @cached_property
    def _estimates(self) -> dict[tuple[str, str], Estimate]:
        """Return the estimates of ``summary``, by variant and metric."""
        names = zip(self.summary["variant"].astype(str), self.summary["metric"], strict=True)
        rows = self.summary[list(Estimate._fields)].itertuples(index=False)
        return dict(zip(names, map(Estimate._make, rows), strict=True))


class _Played(NamedTuple):
    """A played run is the part of one run that a study is made of."""

    variant: str
    strategy: str
    seed: int
    metric: Metric
    rounds: pd.DataFrame
    work: Mapping[str, float]  # the metrics of its plans and devices, by name
    config: Mapping[str, Any]
    num_test: float  # examples that are held out; NaN where the manifest does not say


def study(
    runs: RunSet,
    *,
    target: float | None = None,
    baseline: str | None = None,
    smoothing: int = SMOOTHING,
) -> Study:
    """Return the study of these runs, of which only the columns that count are read.

    One run's plans are in memory at a time. A run whose tables turn out damaged is left out and
    named. Raises RunError if the runs met unlike conditions, none can be read, the target or the
    smoothing is out of range, or the baseline is no variant.
    """
    if runs.runs.empty:
        raise RunError("at least one run must be left to compare; none is as asked for")
    require_comparable(runs)
    played: dict[str, _Played] = {}
    damaged: list[str] = []
    for row in runs.runs.reset_index().to_dict("records"):
        path = Path(row["path"])
        try:
            metric = next(one for one in JUDGES if one.name == row["metric"])
            beside = [one.name for one in BESIDE]
            columns = (*ROUND_COLUMNS, metric.name)
            rounds = read_table(path, "rounds", columns, where_there=beside)
            clients = read_table(path, "clients", CLIENT_COLUMNS)
            of_devices = (f"{what}_{metric.name}" for what in ("expected", "own"))
            devices = read_table(path, "devices", ("device_id", *of_devices))
            config = read_config(path)
            title_of(path, config, "strategy_title")
        except RunError as error:
            damaged.append(str(error))
            continue
        played[row["run"]] = _Played(
            row["variant"],
            row["strategy"],
            row["seed"],
            metric,
            rounds,
            work_of(clients, devices, metric),
            config,
            finite_or_nan(row["num_test"]),
        )
    if not played:
        raise RunError("\n".join(["at least one run must be readable; got none", *damaged]))
    left_out = (*runs.left_out, *damaged)
    return _study(played, target, baseline, smoothing=smoothing, left_out=left_out)


def study_of(
    runs: Sequence[Run],
    *,
    target: float | None = None,
    baseline: str | None = None,
    smoothing: int = SMOOTHING,
    left_out: Sequence[str] = (),
    works: Sequence[Mapping[str, float]] | None = None,
) -> Study:
    """Return the study of runs that are in memory, whose labels name their variants.

    The study holds the runs, as figures need them. ``works`` has for each run what ``work_of``
    returns, where the runs do not hold their plans. That they met the same conditions is for the
    caller to check (``require_comparable``). Raises RunError without any run, and if the target is
    out of range or the baseline is no variant.
    """
    if not runs:
        raise RunError("a comparison needs at least one finished run, got none")
    if works is None:
        works = [work_of(run.clients, run.devices, run.metric) for run in runs]
    played = {
        _run_name(run): _Played(
            run.label,
            run.strategy,
            int(run.manifest["seed"]),
            run.metric,
            run.rounds,
            work,
            run.config,
            finite_or_nan(run.manifest.get("data", {}).get("num_test")),
        )
        for run, work in zip(runs, works, strict=True)
    }
    return _study(
        played, target, baseline, smoothing=smoothing, runs=tuple(runs), left_out=left_out
    )


def _run_name(run: Run) -> str:
    return f"{run.label} s{run.manifest['seed']}"


def work_of(clients: pd.DataFrame, devices: pd.DataFrame, metric: Metric) -> dict[str, float]:
    """Return the metrics of one run's plans, and of the devices of its fleet, by name.

    ``metric`` is the one that the run is judged by.
    """
    return {**metrics.of_clients(clients), **metrics.of_devices(devices, clients, metric)}


def _study(
    played: Mapping[str, _Played],
    target: float | None,
    baseline: str | None,
    *,
    smoothing: int = SMOOTHING,
    runs: tuple[Run, ...] = (),
    left_out: Sequence[str] = (),
) -> Study:
    """Return the study of what was read, and of each further target of the configs."""
    if smoothing < 1:
        raise RunError(f"the smoothing must be over at least 1 evaluation, got {smoothing}")
    rounds = _judging(played)
    metric = _metric(played)
    fixed = _fixed_targets(played) if target is None else []
    chosen = (
        Target(fixed[0], "fixed in the config")
        if fixed
        else metrics.choose_target(rounds, target, metric=metric, smoothing=smoothing)
    )
    found = _at_target(played, chosen, baseline, smoothing=smoothing)
    logging.getLogger("fedclock").info(
        "target %s: %s; baseline %s", chosen.value, chosen.rule, found.baseline
    )
    others = tuple(
        _at_target(played, Target(other, chosen.rule), baseline, smoothing=smoothing)
        for other in fixed[1:]
    )
    return replace(
        found, runs=runs, left_out=tuple(left_out), others=others, charged=_charged(played)
    )


def _charged(played: Mapping[str, _Played]) -> tuple[str, ...]:
    """Return the larger models whose costs the configs charge while they train another one."""
    costs = (one.config.get("cost") for one in played.values())
    named = {str(cost["model"]) for cost in costs if isinstance(cost, dict) and cost.get("model")}
    return tuple(sorted(map(portable_name, named)))


def _fixed_targets(played: Mapping[str, _Played]) -> list[float]:
    """Return the targets that the configs name, the hardest first; none where nothing is tested."""
    if not any(one.rounds[one.metric.name].notna().any() for one in played.values()):
        return []
    named = {
        float(target)
        for one in played.values()
        for target in _listed(one.config.get("targets"))
        if is_number(target) and not wrong_target(one.metric, target)
    }
    return sorted(named, reverse=_metric(played).better == "higher")


def _at_target(
    played: Mapping[str, _Played], chosen: Target, baseline: str | None, *, smoothing: int
) -> Study:
    """Return the study of what was read, at one target."""
    metric = _metric(played)
    smooth = {n: metrics.smoothed(one.rounds, metric, smoothing) for n, one in played.items()}
    horizon_s = _horizon_s(_judging(played), metric)
    budget = _shared_budget(_judging(played), metric)
    found = {name: metrics.of_rounds(one.rounds, metric) for name, one in played.items()}
    rows = {
        name: {
            "variant": one.variant,
            "strategy": one.strategy,
            "seed": one.seed,
            **metrics.to_target(smooth[name], chosen.value, metric),
            **found[name],
            **metrics.value_within(smooth[name], budget, metric),
            f"{metric.name}_area": metrics.mean_over_time(one.rounds, horizon_s, metric),
            f"{metric.name}_error": _standard_error(one, found[name][f"final_{metric.name}"]),
            "smoothed_best": metric.best(smooth[name][metric.name]),
            **one.work,
            **({} if metrics.is_timed(one.rounds) else dict.fromkeys(metrics.of_time(metric), NAN)),
        }
        for name, one in played.items()
    }
    per_run = pd.DataFrame.from_dict(rows, orient="index")
    names = reader_names(
        (one.variant, one.strategy, one.config.get("strategy_title")) for one in played.values()
    )
    variants = {name: variant for variant, name in names.items()}
    own = [one.variant for one in played.values() if not any(place_of(one.config)[1:])]
    base = choose_baseline(
        per_run, baseline if baseline in names else variants.get(baseline or "", baseline), own
    )
    per_run = per_run.join(speed_ups(per_run, base))
    return Study(
        chosen,
        base,
        per_run,
        over_seeds(per_run),
        metric,
        names,
        budget=budget,
        smoothing=smoothing,
        warnings=tuple(
            warnings_of(
                per_run.assign(variant=per_run["variant"].map(names)),
                chosen.value,
                smoothing,
                metric,
            )
        ),
    )


def _metric(played: Mapping[str, _Played]) -> Metric:
    """Return the metric that all these runs are judged by."""
    return next(iter(played.values())).metric


def _judging(played: Mapping[str, _Played]) -> list[pd.DataFrame]:
    """Return the rounds of the runs that set the target and the spending to compare metrics at.

    Runs of references are left out, unless there is nothing else.
    """
    own = [one.rounds for one in played.values() if one.strategy not in REFERENCES]
    return own or [one.rounds for one in played.values()]


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _standard_error(one: _Played, final: float) -> float:
    """Return the standard error of a run's final value, by the examples that it was measured on.

    It is NaN for a metric that is no share of examples.
    """
    evaluation = one.config.get("evaluation")
    asked = evaluation.get("examples") if isinstance(evaluation, dict) else None
    counts = [n for n in (finite_or_nan(asked), one.num_test) if n > 0]
    return one.metric.standard_error(final, min(counts)) if counts else math.nan


def choose_baseline(
    per_run: pd.DataFrame, given: str | None = None, own: Collection[str] = ()
) -> str:
    """Return the variant of this name; without one, the first of FedLoRA, else the first of all.

    References (``Strategy.is_reference``) are taken only if there is nothing else. Variants in
    ``own`` go before others: they have the config's own values, and the others are points of a
    grid. Raises RunError where no variant has the name.
    """
    variants = list(dict.fromkeys(per_run["variant"]))
    if given is None:
        rest = list(per_run.loc[~per_run["strategy"].isin(REFERENCES), "variant"]) or variants
        plain = list(per_run.loc[per_run["strategy"] == "fedlora", "variant"]) or rest
        return str(next((variant for variant in plain if variant in own), plain[0]))
    if given not in variants:
        names = ", ".join(variants)
        meant = did_you_mean(given, variants)
        raise RunError(f"the baseline must be one of the variants ({names}), got {given!r}{meant}")
    return given


def _shared_budget(rounds: Sequence[pd.DataFrame], metric: Metric) -> Spent | None:
    """Return, for each kind of spending, the least that a run had spent at its last evaluation."""
    ends = [end for one in rounds if (end := metrics.last_evaluation(one, metric)).at_s > 0]
    return Spent(*(min(part) for part in zip(*ends, strict=True))) if ends else None


def _horizon_s(rounds: Sequence[pd.DataFrame], metric: Metric) -> float:
    """Return the instant in s up to which every run that learns was evaluated."""
    ends = [metrics.evaluated(one, metric)["closed_s"].max() for one in rounds]
    return float(min((end for end in ends if end > 0), default=math.nan))
