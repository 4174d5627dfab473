"""Draws peak memory by part against each device's budget, and plans that ran out of memory."""

from __future__ import annotations

from typing import Any

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
from analysis.runs.fleet import devices
from analysis.runs.load import Run
from analysis.units import BYTES, Unit

MAX_NAMES = 40
PARTS = {  # name in the legend -> the parts of the cost model that it sums, and its colour
    "frozen weights": (("weights",), colors.SLATE),
    "adapters, gradients, optimizer": (("adapters", "gradients", "optimizer"), colors.PURPLE),
    "saved activations": (("activations",), colors.ORANGE),
    "working block": (("transient",), colors.SKY),
    "head, loss": (("head",), colors.GREEN),
}


def frame(study: Study) -> pd.DataFrame:
    """Return a row for each device and run of the first seed: its largest plan, budget and OOMs."""
    runs = of_first_seed(study.runs)
    order = devices(runs, study.devices)
    return of_runs(runs, lambda run: _largest(run, order))


def draw(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return a panel for each run: devices as stacked bars, budgets as dashes, OOM as crosses."""
    labels = list(dict.fromkeys(frame["label"]))
    figure = style.figure(
        paper.page_in, 1.3 + min(1.25, (style.MAX_HEIGHT_IN - 1.9) / len(labels)) * len(labels)
    )
    panels = figure.subplots(len(labels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    size = BYTES.unit(frame["peak_memory_bytes"])
    for axes, label in zip(panels, labels, strict=True):
        rows = frame[frame["label"] == label].reset_index(drop=True)
        plot(rows, axes, size, top_bytes=_top_bytes(frame))
        axes.set_title(escape.figure(label), loc="left", pad=3)
    panels[0].set_ylim(0, _top_bytes(frame) / size.size)
    _name_devices(panels[-1], frame[frame["label"] == labels[0]].reset_index(drop=True))
    panels[-1].set_xlabel("Device, by rising memory budget", labelpad=1)
    figure.supylabel(f"Peak memory ({size.name})", fontsize=8)
    style.legend_above(figure, _handles(frame))
    return figure


def _largest(run: Run, order: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each device, in that order: its plan with the largest peak, else NaN."""
    plans = run.clients
    largest = plans.loc[plans.groupby("device_id")["peak_memory_bytes"].idxmax()]
    rows = largest.set_index("device_id").reindex(order.index)
    num_oom = (plans["outcome"] == "oom").groupby(plans["device_id"]).sum()
    columns = {
        "device_id": order.index,
        "profile": order["profile"],
        "memory_budget_bytes": order["memory_budget_bytes"],
        "peak_memory_bytes": rows["peak_memory_bytes"],
        "num_plans": plans.groupby("device_id").size().reindex(order.index, fill_value=0),
        "num_oom": num_oom.reindex(order.index, fill_value=0),
    }
    parts = {
        name: rows[[f"memory_{part}_bytes" for part in held]].sum(axis=1, min_count=1)
        for name, (held, _) in PARTS.items()
    }
    return pd.DataFrame({**columns, **parts}, index=order.index).reset_index(drop=True)


def plot(rows: pd.DataFrame, axes: Axes, unit: Unit, *, top_bytes: float) -> None:
    """Draw the bars, budgets and crosses of one label, a place on the axis for each row.

    A budget above ``top_bytes`` is marked at the edge.
    """
    size = unit.size
    floor = pd.Series(0.0, index=rows.index)
    for name, (_, color) in PARTS.items():
        height = rows[name].fillna(0.0) / size
        axes.bar(rows.index, height, 0.72, bottom=floor, color=color, linewidth=0)
        floor = floor + height
    budget = rows["memory_budget_bytes"] / size
    axes.hlines(budget, rows.index - 0.46, rows.index + 0.46, color=colors.BLACK, linewidth=1.4)
    oom = rows[rows["num_oom"] > 0]
    axes.plot(
        oom.index, oom["peak_memory_bytes"] / size * 1.07, "x", color=colors.RED,
        markersize=4.5, markeredgewidth=1.4,
    )  # fmt: skip
    unplanned = rows.index[rows["num_plans"] == 0] if len(rows) <= MAX_NAMES else ()
    for position in unplanned:
        axes.annotate(
            "no plan", (float(position), 0), (0, 2), textcoords="offset points", rotation=90,
            ha="center", va="bottom", fontsize=7, color=colors.DARK_GREY,
        )  # fmt: skip
    above = budget[rows["memory_budget_bytes"] > top_bytes]
    axes.plot(
        above.index, [0.96] * len(above), "^", color=colors.BLACK, markersize=3.5,
        transform=axes.get_xaxis_transform(),
    )  # fmt: skip
    axes.set_xlim(-0.6, len(rows) - 0.4)
    axes.grid(axis="y")


def _top_bytes(frame: pd.DataFrame) -> float:
    """Return the end of the axis: above bars and crosses, and budgets that are not far above."""
    highest = float(frame["peak_memory_bytes"].max())
    budgets = frame.loc[frame["memory_budget_bytes"] <= 1.5 * highest, "memory_budget_bytes"]
    return max(1.2 * highest, 1.04 * float(budgets.max()))


def _name_devices(axes: Axes, rows: pd.DataFrame) -> None:
    """Write number and profile below each bar; for a large fleet, every few numbers alone.

    Names that are too long for their bars stand upright.
    """
    step = -(-len(rows) // MAX_NAMES)
    named = rows[::step]
    texts = [
        f"{escape.figure(profile)}  {device}" if step == 1 else str(device)
        for profile, device in zip(named["profile"], named["device_id"], strict=True)
    ]
    bar_in = 0.9 * float(axes.figure.bbox.width) / axes.figure.dpi / len(rows)
    is_upright = 0.047 * max(map(len, texts)) > bar_in * step  # a 7 pt letter is 0.047 in wide
    axes.set_xticks(named.index, texts, rotation=90 if is_upright else 0, fontsize=7)


def _handles(frame: pd.DataFrame) -> list[Artist]:
    """Return what the legend names: the budget, and of the rest what some device has."""
    cross: dict[str, Any] = {"color": colors.RED, "marker": "x", "markeredgewidth": 1.4}
    arrow: dict[str, Any] = {"color": colors.BLACK, "marker": "^"}
    is_above = (frame["memory_budget_bytes"] > _top_bytes(frame)).any()
    parts = {name: color for name, (_, color) in PARTS.items() if frame[name].any()}
    handles: list[Artist] = [Patch(color=color, label=name) for name, color in parts.items()]
    handles += [Line2D([], [], color=colors.BLACK, linewidth=1.4, label="budget")]
    for is_there, name, look, size in (
        (frame["num_oom"].any(), "a plan met OOM", cross, 4.5),
        (is_above, "budget above the axis", arrow, 3.5),
    ):
        if is_there:
            handles.append(Line2D([], [], linestyle="", markersize=size, label=name, **look))
    return handles
