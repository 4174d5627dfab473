"""Draws what every device does in the first rounds: download, compute, upload, wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis import escape
from analysis.figures import colors, style
from analysis.figures.rows import of_first_seed, of_runs
from analysis.metrics.study import Study
from analysis.runs.fleet import devices, offline_pauses, sat_out
from analysis.runs.load import Run
from analysis.units import SECONDS, Unit

NUM_ROUNDS = 3  # rounds of the slowest run; the others are drawn over the same time
MAX_ROWS = 62  # rows of all panels together that fit on a page
PHASES: dict[str, dict[str, Any]] = {  # matplotlib's options for the fill of each phase's bar
    "download": {"facecolor": colors.SKY},
    "compute": {"facecolor": colors.SLATE},
    "upload": {"facecolor": colors.ORANGE},
    "offline": {"facecolor": "white", "edgecolor": colors.OLIVE, "hatch": "......"},
    "wait": {"facecolor": colors.PALE},
    "sat out": {"facecolor": "white", "edgecolor": "#BDBDBD", "hatch": "//////"},
}
MARKS = {  # outcome -> marker, colour and name in the legend
    "oom": ("x", colors.RED, "OOM"),
    "late": ("v", colors.PURPLE, "dropped as late"),
    "offline": ("s", colors.OLIVE, "went offline"),
    "crashed": ("P", colors.WINE, "crashed"),
    "lost": ("D", colors.GREY, "upload lost"),
    "rejected": ("X", colors.VERMILLION, "rejected"),
}
AGGREGATION = "aggregation"


def frame(study: Study) -> pd.DataFrame:
    """Return one row for each phase of a device, each mark and each aggregation.

    They lie within one window for all runs of the first seed.

    Marks and aggregations last 0 s; an aggregation has no device.
    """
    runs = of_first_seed(study.runs)
    window_s = max(_closed_s(run, NUM_ROUNDS) for run in runs)
    order = devices(runs, study.devices)
    spans = of_runs(runs, _spans)
    spans = spans[spans["start_s"] <= window_s]
    spans["length_s"] = spans["length_s"].clip(upper=window_s - spans["start_s"])
    seen = set(spans["device_id"])
    shown = _spread(
        [device for device in order.index if device in seen],
        most=max(8, min(24, MAX_ROWS // len(runs))),
    )
    position = {device: place for place, device in enumerate(shown)}
    spans["position"] = spans["device_id"].map(position)
    spans["profile"] = spans["device_id"].map(order["profile"])
    kept = spans[spans["position"].notna() | (spans["phase"] == AGGREGATION)]
    return kept.assign(window_s=window_s).reset_index(drop=True)


def draw(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return a panel for each label on one time axis: devices as rows, aggregations as lines."""
    labels = list(dict.fromkeys(frame["label"]))
    rows = frame.dropna(subset="position").drop_duplicates("position").sort_values("position")
    panel_in = max(0.9, 0.12 * len(rows))
    figure = style.figure(paper.page_in, 0.45 + len(labels) * (panel_in + 0.2))
    panels = figure.subplots(len(labels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    unit = SECONDS.unit(frame["window_s"])
    for axes, label in zip(panels, labels, strict=True):
        plot(frame[frame["label"] == label], axes, unit)
        axes.set_title(escape.figure(label), loc="left", pad=5)
    names = [
        f"{escape.figure(profile)}  {device:.0f}"
        for profile, device in zip(rows["profile"], rows["device_id"], strict=True)
    ]
    panels[0].set_yticks(rows["position"], names)
    panels[0].set_ylim(-0.7, len(rows) - 0.3)
    panels[0].set_xlim(0, frame["window_s"].max() / unit.size)
    panels[-1].set_xlabel(f"Simulated time ({unit.name})")
    style.legend_above(figure, _handles(set(frame["phase"])))
    return figure


def _closed_s(run: Run, number: int) -> float:
    """Return the instant at which round ``number`` closed, or the last one before it."""
    rounds = run.rounds
    return float(rounds.loc[rounds["round"] <= number, "closed_s"].max())


def _spread(everyone: Sequence[int], most: int) -> list[int]:
    """Return at most ``most`` devices, evenly spread, so that rows stay readable."""
    if len(everyone) <= most:
        return list(everyone)
    places = np.linspace(0, len(everyone) - 1, most).round().astype(int)
    return [everyone[place] for place in places]


def _spans(run: Run) -> pd.DataFrame:
    """Return every phase and mark of a run: label, strategy, device, round, phase, start, length.

    A phase ends with the plan at the latest: an OOM or a dropped device does not go on.
    """
    plans, ends_s = run.clients, run.clients["finished_s"]
    start_s, parts = plans["started_s"], []
    for phase in ("download", "compute", "upload"):
        length_s = plans["train_s" if phase == "compute" else f"{phase}_s"].fillna(0.0)
        length_s = length_s.clip(upper=(ends_s - start_s).clip(lower=0.0))
        parts.append(_part(plans, phase, start_s, length_s))
        start_s = start_s + length_s
    parts = [_interrupted(pd.concat(parts), run)]
    done = plans["outcome"] == "aggregated"
    parts.append(_part(plans[done], "wait", ends_s[done], plans.loc[done, "waiting_s"]))
    spans = pd.concat(parts)
    marks = [_part(plans[plans["outcome"] == mark], mark, ends_s, ends_s * 0.0) for mark in MARKS]
    rounds = run.rounds[run.rounds["round"] > 0].assign(device_id=np.nan)
    aggregated = rounds[rounds["num_aggregated"] > 0]
    marks.append(_part(aggregated, AGGREGATION, rounds["closed_s"], rounds["closed_s"] * 0.0))
    idle = pd.DataFrame(sat_out(run), columns=["device_id", "round"])
    idle = idle.merge(rounds.drop(columns="device_id"), on="round")
    marks.append(_part(idle, "sat out", idle["opened_s"], idle["duration_s"]))
    return pd.concat([spans[spans["length_s"] > 0], *marks])


def _interrupted(working: pd.DataFrame, run: Run) -> pd.DataFrame:
    """Return the phases of all plans, interrupted and delayed while their devices were offline."""
    pauses = offline_pauses(run)
    if not pauses:
        return working
    rows = []
    for key, phases in working.groupby(["device_id", "round"], sort=False):
        device, number = (int(str(part)) for part in key)
        away = iter(pauses.get((device, number), ()))
        pause = next(away, None)
        late_s = 0.0  # the delay by the pauses so far
        for phase, start_s, length_s in phases[["phase", "start_s", "length_s"]].values:
            at_s, left_s = start_s + late_s, length_s
            while pause and pause[0] < at_s + left_s:
                done_s, gone_s = max(pause[0] - at_s, 0.0), pause[1] - pause[0]
                rows += [(device, number, phase, at_s, done_s)]
                rows += [(device, number, "offline", pause[0], gone_s)]
                at_s, left_s, late_s = pause[1], left_s - done_s, late_s + gone_s
                pause = next(away, None)
            rows.append((device, number, phase, at_s, left_s))
        if pause:  # the device did not come back before its plan ended
            rows.append((device, number, "offline", pause[0], pause[1] - pause[0]))
    return pd.DataFrame(rows, columns=["device_id", "round", "phase", "start_s", "length_s"])


def _part(
    rows: pd.DataFrame, phase: str, start_s: pd.Series[float], length_s: pd.Series[float]
) -> pd.DataFrame:
    """Return the spans of one phase; the series are matched to the rows by index."""
    return rows[["device_id", "round"]].assign(phase=phase, start_s=start_s, length_s=length_s)


def plot(spans: pd.DataFrame, axes: Axes, unit: Unit) -> None:
    """Draw the bars, marks and aggregation lines of one label."""
    size = unit.size
    for phase, fill in PHASES.items():
        rows = spans[spans["phase"] == phase]
        axes.barh(
            rows["position"], rows["length_s"] / size, 0.74, rows["start_s"] / size,
            linewidth=0, **fill,
        )  # fmt: skip
    for mark, (marker, color, _) in MARKS.items():
        rows = spans[spans["phase"] == mark]
        axes.plot(
            rows["start_s"] / size, rows["position"], marker, color=color, markersize=3.6,
            markeredgewidth=1.2,
        )  # fmt: skip
    for at_s in spans.loc[spans["phase"] == AGGREGATION, "start_s"] / size:
        axes.axvline(at_s, color=colors.BLACK, linewidth=0.8)
        axes.plot(
            at_s, 1.0, "v", color=colors.BLACK, markersize=3.5, clip_on=False,
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    axes.tick_params(axis="y", length=0, labelsize=7)


def _handles(seen: set[str]) -> list[Artist]:
    """Return the entries of the legend: the phases and marks that occur."""
    bars: list[Artist] = [
        Patch(label=phase, linewidth=0, **fill) for phase, fill in PHASES.items() if phase in seen
    ]
    marks = [look for mark, look in MARKS.items() if mark in seen]
    return [
        *bars,
        *(
            Line2D([], [], color=color, marker=marker, linestyle="", label=words)
            for marker, color, words in (*marks, ("v", colors.BLACK, AGGREGATION))
        ),
    ]
