"""Draws how results follow a setting: one key of a sweep, or the size of the fleet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from analysis import escape
from analysis.figures import bands, colors, lines, style, target
from analysis.figures.curves import Quantity
from analysis.figures.rows import of_runs
from analysis.metrics import run_metrics as metrics
from analysis.metrics.definitions import JUDGES, scale_of
from analysis.runs.files import RunError
from analysis.runs.load import Run
from analysis.units import BYTES, JOULES, SECONDS
from simulator.config.keys import flatten
from simulator.config.schema import NOT_SIMULATED
from traces.text import did_you_mean

FINAL = tuple(
    Quantity(f"final_{metric.name}", f"Final {metric.phrase}", scale_of(metric), metric.possible)
    for metric in JUDGES
)
TIME_TO_TARGET = Quantity("time_to_target_s", "Time to target", SECONDS)
TRAFFIC = Quantity("transferred_bytes", "Traffic, both ways", BYTES)
ENERGY = Quantity("energy_j", "Energy", JOULES)
ROUND_TIME = Quantity("round_s", "Simulated time per round", SECONDS)
WALL_TIME = Quantity("wall_s_per_round", "Host time per round", SECONDS)
BYTES_PER_ROUND = Quantity("bytes_per_round", "Traffic per round", BYTES)
NUM_DEVICES = "num_devices"


def frame(runs: Sequence[Run], key: str, *, target: float | None = None) -> pd.DataFrame:
    """Return one row for each run: the value of a key of its config, and what the run came to.

    Runs of one label may differ in this key and in the seed alone: raises RunError on others, and
    on a key that no config has or whose value is the same in all runs.
    """
    configs = [flatten(run.config) for run in runs]
    values = [_value(config.get(key)) for config in configs]
    if not any(key in config for config in configs):
        meant = did_you_mean(key, {name for config in configs for name in config})
        raise RunError(f"the key must be one of the runs' configs, got {key}{meant}")
    if len(set(map(str, values))) < 2:
        raise RunError(f"the key must have several values in the runs, got {key}={values[0]} alone")
    _require_equal(runs, key)
    rows = [
        _row(run, target) | {"key": key, "value": v} for run, v in zip(runs, values, strict=True)
    ]
    return _of_labels(runs, rows)


def scale_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row for each run: the devices of its fleet, and what a round of them took.

    The host's time is that of the run's manifest: the one number here that is not simulated.
    Raises RunError where all fleets are of one size.
    """
    if len({len(run.devices) for run in runs}) < 2:
        raise RunError("the runs must have fleets of several sizes, got one")
    return _of_labels(runs, [_row(run, None) for run in runs])


def _of_labels(runs: Sequence[Run], rows: Sequence[dict[str, object]]) -> pd.DataFrame:
    """Return the rows under the configs' own labels, since variants of a sweep name its values."""
    named = dict(zip(map(id, runs), rows, strict=True))
    table = of_runs(runs, lambda run: pd.DataFrame([named[id(run)]]))
    return table.assign(label=[str(run.manifest["label"]) for run in runs])


def _row(run: Run, target: float | None) -> dict[str, object]:
    rounds = run.rounds
    num_rounds = max(1, int(rounds["round"].max()))
    final = f"final_{run.metric.name}"
    sent = float(rounds["download_bytes"].sum() + rounds["upload_bytes"].sum())
    smooth = metrics.smoothed(rounds, metric=run.metric)
    timed = metrics.to_target(smooth, target, run.metric)
    return {
        NUM_DEVICES: len(run.devices),
        final: metrics.of_rounds(rounds, run.metric)[final],
        "target": target,
        **{name: timed[name] for name in ("is_reached", "time_to_target_s", "spent_s")},
        "transferred_bytes": sent,
        "energy_j": float(rounds["energy_j"].sum()),
        "round_s": float(rounds["closed_s"].max()) / num_rounds,
        "wall_s_per_round": float(run.manifest.get("wall_s", math.nan)) / num_rounds,
        "bytes_per_round": sent / num_rounds,
    }


def _value(value: object) -> object:
    """Return a value as a table can hold it: a list or a mapping becomes text."""
    return value if isinstance(value, int | float | str | None) else str(value)


def _require_equal(runs: Sequence[Run], key: str) -> None:
    """Raise RunError where runs of one label differ in more than the key and the seed."""
    first: dict[str, dict[str, object]] = {}
    for run in runs:
        own = {k: v for k, v in flatten(run.config).items() if k not in (key, *NOT_SIMULATED)}
        base = first.setdefault(str(run.manifest["label"]), own)
        differing = sorted(k for k in own.keys() | base.keys() if own.get(k) != base.get(k))
        if differing:
            raise RunError(
                f"runs of one label must differ in {key} and the seed alone; {run.path} differs in"
                f" {', '.join(differing)} too"
            )


def plot(
    frame: pd.DataFrame, axes: Axes, y: Quantity, *, x: str = "value", band: str = "range"
) -> None:
    """Draw a line for each label over the values in rising order, with its band over seeds.

    Numbers that span a factor of 8 or more stand on a logarithmic axis; words stand evenly apart.
    """
    unit = y.unit(frame)
    values = sorted(frame[x].unique(), key=lambda v: (isinstance(v, str), v))
    is_number = pd.api.types.is_numeric_dtype(frame[x])
    place = {value: float(value) if is_number else float(i) for i, value in enumerate(values)}
    for label, look in colors.looks(frame).items():
        rows = frame[frame["label"] == label].assign(at=lambda rows: rows[x].map(place))
        if rows[y.column].isna().all():
            continue
        if y is TIME_TO_TARGET:
            curve = _medians(rows, band=band)
        else:
            known = rows[rows[y.column].notna()]
            curve = bands.curve(known, x="at", y=y.column, band=band, possible=y.possible)
        bands.plot(axes, curve, look, label=label, size=(1.0, unit.size))
    if is_number and 0 < 8 * values[0] <= values[-1]:
        axes.set_xscale("log")
    _mark_values(axes, values)
    axes.set_ylabel(y.title(unit))
    axes.grid()


def _medians(rows: pd.DataFrame, *, band: str) -> bands.Curve:
    """Return the median times to the target over the places, where the seeds bound them above."""
    times = rows.assign(at_s=rows["time_to_target_s"].fillna(rows["spent_s"]))
    found = target.medians(times, band=band, by="at").sort_index()
    found = found[found["upper"] == found["middle"]]
    low, high = (found[end].fillna(found["middle"]).to_numpy(float) for end in ("low", "high"))
    middle = found["middle"].to_numpy(float)
    return bands.Curve(found.index.to_numpy(float), low, middle, high)


def _mark_values(axes: Axes, values: Sequence[Any]) -> None:
    """Draw a tick at every value, and nowhere else: numbers where they are, words evenly apart."""
    words = [isinstance(value, str) for value in values]
    places = range(len(values)) if any(words) else values
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(
        list(places), [escape.figure(str(v)) if any(words) else f"{v:g}" for v in values]
    )


def draw(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return a wide figure: first metric, time to the target, bytes and joules, where known."""
    shown = [
        quantity
        for quantity in (*FINAL, TIME_TO_TARGET, TRAFFIC, ENERGY)
        if quantity.column in frame and frame[quantity.column].notna().any()
    ]
    figure = _panels(frame, paper, shown, x="value", name=escape.figure(str(frame["key"].iloc[0])))
    for axes in figure.axes:
        axes.set_ylim(bottom=0)
        lines.tell_apart(axes)
    return figure


def draw_scale(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return a wide figure: simulated time, bytes and host time of a round against devices."""
    shown = (ROUND_TIME, BYTES_PER_ROUND, WALL_TIME)
    figure = _panels(frame, paper, shown, x=NUM_DEVICES, name="Devices")
    for axes in figure.axes:  # on these scales a cost proportional to the fleet is a straight line
        axes.set(xscale="log", yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        _mark_values(axes, sorted(frame[NUM_DEVICES].unique()))
        lines.tell_apart(axes)
    return figure


def _panels(
    frame: pd.DataFrame, paper: style.Paper, shown: Sequence[Quantity], *, x: str, name: str
) -> Figure:
    figure = style.figure(paper.page_in, 1.8)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, quantity in zip(panels, shown, strict=True):
        plot(frame, axes, quantity, x=x, band=paper.band)
        axes.set_xlabel(name)
    # A label may have numbers in some panels only, so the legend collects those of all panels.
    handles = {str(one.get_label()): one for axes in panels for one in style.labelled(axes)}
    note = bands.note(frame, paper.band)
    if note and TIME_TO_TARGET in shown:
        note += "; time to target: median"
    style.legend_above(figure, list(handles.values()), note)
    return figure
