"""Makes the numbers behind the tables and figures of a study's page, one frame each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.figures import colors, curves
from analysis.figures.rows import of_runs
from analysis.metrics import run_metrics
from analysis.metrics.paired import students
from devices.vocabulary.plan import TermGrid, TrainingPlan, WeightFormat
from simulator.config.problems import UserError
from studies.source import Source
from traces.text import listed

UNPACKED: WeightFormat = "fp32"
GRID = tuple(round(0.05 * k, 2) for k in range(1, 20))
"""Targets of the figure of speed-ups."""


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
                "round_s_ratio": mean_ratio(_per_round(one), _per_round(other)),
                "rounds_ratio": mean_ratio(one["rounds_to_target"], other["rounds_to_target"]),
                "time_ratio": mean_ratio(one["time_to_target_s"], other["time_to_target_s"]),
            }
            rows.append(row)
    return _looked(source, rows)


def compared_frame(source: Source) -> pd.DataFrame:
    """Return the rows of ``decomposition_frame`` that have ratios, without the baseline's own."""
    frame = decomposition_frame(source)
    return frame[~frame["is_baseline"] & frame["time_ratio"].notna()]


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


def of_variants(frame: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Return the rows of these variants, or all where none is named.

    Raises UserError for a variant that has no row, and so for each where rows have no variant.
    """
    if not labels:
        return frame
    check_shown(labels, frame["label"].unique().tolist() if "label" in frame else ())
    return frame[frame["label"].isin(labels)]


def check_shown(labels: Sequence[str], known: Sequence[str]) -> None:
    """Raise UserError where a line of the page names a variant that is not known."""
    if unknown := [label for label in labels if label not in known]:
        which = ", ".join(known) or "none"
        raise UserError(f"a variant that is shown must be one of {which}, got {listed(unknown)}")


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
            cost = world.cost_model.cost(plan_of_depth(source, depth, packed, bits), profile)
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


def baseline_depth(source: Source) -> int:
    """Return the greatest depth, on average, that the baseline trains on a kind of device."""
    depths = chosen_frame(source).set_index("label")["depth"]
    return round(float(depths[source.study.baseline].max()))


def bound_frame(source: Source) -> pd.DataFrame:
    """Return one row for each kind of device and depth: seconds of a step, and over depth 1."""
    world, rows = source.world, []
    num_steps = source.config.local.steps or 1
    profiles = {device.profile.name: device.profile for device in world.fleet}
    for name, profile in profiles.items():
        steps = [
            world.cost_model.cost(plan_of_depth(source, depth, 0), profile).train_s / num_steps
            for depth in range(1, world.model.num_blocks + 1)
        ]
        rows += [
            {"profile": name, "depth": depth, "step_s": step, "over_depth_1": step / steps[0]}
            for depth, step in enumerate(steps, start=1)
        ]
    return pd.DataFrame(rows)


def paid_frame(source: Source) -> pd.DataFrame:
    """Return for each variant the mean depth of its plans and what such a step takes over depth 1.

    One row for each variant and depth, with the curve that it lies on: the mean over the kinds of
    device of T(depth) / T(1), without packing.
    """
    curve = bound_frame(source).groupby("depth", as_index=False)["over_depth_1"].mean()
    rows = []
    for label, own in chosen_frame(source).groupby("label", sort=False):
        mean_depth = float(np.average(own["depth"], weights=own["num_plans"]))
        paid = float(np.interp(mean_depth, curve["depth"], curve["over_depth_1"]))
        rows += [
            {
                "label": label,
                "depth": depth,
                "over_depth_1": ratio,
                "mean_depth": mean_depth,
                "mean_over_depth_1": paid,
            }
            for depth, ratio in zip(curve["depth"], curve["over_depth_1"], strict=True)
        ]
    return _looked(source, rows)


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


def plan_of_depth(source: Source, depth: int, packed: int, bits: int = 8) -> TrainingPlan:
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


def _looked(source: Source, rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Return rows as a frame for a figure: with strategy and shade of each label."""
    strategies = {run.label: run.strategy for run in source.study.runs}
    shades = colors.shades(strategies.items())
    frame = pd.DataFrame(rows)
    labels = frame["label"]
    return frame.assign(strategy=labels.map(strategies), shade=labels.map(shades))


def _per_round(runs: pd.DataFrame) -> pd.Series[float]:
    return (runs["time_to_target_s"] / runs["rounds_to_target"]).astype(float)


def mean_ratio(one: pd.Series[float], other: pd.Series[float]) -> float:
    """Return the geometric mean of the ratios of pairs; NaN without one."""
    if one.empty:
        return math.nan
    return float(np.exp(np.log(one.astype(float) / other.astype(float)).mean()))
